"""What the users of an app read in these tests."""

from typing import Final

__all__ = ["ANSWER", "BROKEN", "REFUSED", "UNAVAILABLE"]

ANSWER: Final = "the main LLM's answer"
REFUSED: Final = "I'm sorry, I can't respond to that."
UNAVAILABLE: Final = "I'm sorry, but I cannot respond right now: messages cannot be checked. Please try again later."
BROKEN: Final = "I'm sorry, an internal error has occurred."
