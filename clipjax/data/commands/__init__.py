"""The commands `clipjax data ...`."""
