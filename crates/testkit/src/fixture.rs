//! The committed fixtures: what is in `tests/fixtures`, and how it is made.
