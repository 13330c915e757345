"""Old names of attributes."""
import warnings
from typing import Any

__all__ = ['renamed']


def renamed(name: str) -> property:
    """Make a property under an attribute's old name. It reads and writes the attribute `name`, and warns."""
    def warn(instance: Any) -> None:
        warnings.warn(f'This attribute of {type(instance).__name__} is now called {name}.', DeprecationWarning, 3)

    def read(instance: Any) -> Any:
        warn(instance)
        return getattr(instance, name)

    def write(instance: Any, value: Any) -> None:
        warn(instance)
        setattr(instance, name, value)

    return property(read, write, doc=f'Old name of `{name}`.')
