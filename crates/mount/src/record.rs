//! What outlives the processes of a mount, in memory that is passed on to those that come: what they count, and behind it
//! what the first one noted of its image.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use storage::Words;

/// The memory of `words`, or new memory if those can't be passed on, with these bytes.
pub(crate) fn create(words: &Words, record: &[u8]) -> io::Result<OwnedFd> {
    let memory = match words.memory() {
        Some(memory) => memory.try_clone_to_owned()?,
        None => return create_new(record),
    };
    File::from(memory.try_clone()?).write_all_at(record, Words::BYTES)?;
    Ok(memory)
}

/// New memory with these bytes.
pub(crate) fn create_new(record: &[u8]) -> io::Result<OwnedFd> {
    create(&Words::new()?, record)
}

/// The bytes in it.
pub(crate) fn read(memory: &OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(memory.try_clone()?);
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    let len = file.metadata()?.len().checked_sub(Words::BYTES);
    let len = len.and_then(|len| usize::try_from(len).ok());
    let mut bytes = vec![0; len.ok_or_else(broken)?];
    file.read_exact_at(&mut bytes, Words::BYTES)?;
    Ok(bytes)
}

/// The counters in it.
pub(crate) fn words(memory: &OwnedFd) -> io::Result<Words> {
    Words::of(memory.try_clone()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_record_is_read_as_often_as_needed() {
        for counted in [Words::new().unwrap(), Words::default()] {
            let memory = create(&counted, b"bytes").unwrap();
            assert_eq!(read(&memory).unwrap(), b"bytes");
            let again = memory.try_clone().unwrap();
            let next = Arc::new(words(&again).unwrap());
            next.counter(1).add(1);
            assert_eq!(read(&again).unwrap(), b"bytes");
        }
    }

    #[test]
    fn counters_go_on_behind_the_same_memory() {
        let counted = Arc::new(Words::new().unwrap());
        let memory = create(&counted, b"bytes").unwrap();
        counted.counter(1).add(2);
        let next = Arc::new(words(&memory).unwrap());
        assert_eq!(next.counter(1).value(), 2);
    }
}
