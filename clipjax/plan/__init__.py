"""`clipjax plan`: what a run costs on machines that one does not have, from its train step compiled for them."""
