"""How configurations check their fields."""


def require(condition: bool, message: str) -> None:
    """
    Raises:
        `ValueError`: If `condition` is false.
    """
    if not condition:
        raise ValueError(message)
