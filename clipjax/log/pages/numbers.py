"""Numbers as pages and tables show them."""


def short_number(value: float) -> str:
    """1234567 as 1.23M."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.4g}"
