"""What `clipjax convert` writes, loaded by the libraries that it is written for."""
