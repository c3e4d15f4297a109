"""Weight files of any origin, read and written without the libraries that made them.

`open_tensors` recognises a file from its content and looks at nothing but its table of contents; a tensor is read when
it is asked for. No file is trusted: pickles are read as data, by a machine that can call nothing, every length is
checked against the file, and whatever is not understood is a `UserError` in one sentence.
"""

from clipjax.convert.files.reader import open_tensors
from clipjax.convert.files.safetensors_writer import write_safetensors
from clipjax.convert.files.shards import open_sharded
from clipjax.convert.files.state_dicts import StateDict, state_dict
from clipjax.convert.files.tensor_file import Tensor, TensorFile, read_all

__all__ = [
    "StateDict",
    "Tensor",
    "TensorFile",
    "open_sharded",
    "open_tensors",
    "read_all",
    "state_dict",
    "write_safetensors",
]
