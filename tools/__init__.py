"""Scripts of the repository; none is part of an installed package."""
