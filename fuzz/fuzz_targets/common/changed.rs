//! Inputs that get beyond the first bytes: a good file with some bytes overwritten.

use std::borrow::Cow;

/// The bytes to look at: those of the input as they are, or behind a first byte of 0 changes to `sample`, three bytes
/// each: an offset and a value.
pub fn changed<'a>(sample: &[u8], input: &'a [u8]) -> Cow<'a, [u8]> {
    let [0, changes @ ..] = input else {
        return input.into();
    };
    let mut bytes = sample.to_vec();
    for change in changes.as_chunks::<3>().0 {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] = change[2];
    }
    bytes.into()
}
