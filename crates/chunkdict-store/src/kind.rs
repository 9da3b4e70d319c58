use chunkdict::{Difference, Kind};

use crate::Error;

/// Sees to it that the image `name`, which is of `theirs`, is of the kind `ours`.
pub(crate) fn same(ours: &Kind, name: &str, theirs: &Kind) -> Result<(), Error> {
    match ours.difference(theirs) {
        None => Ok(()),
        Some(Difference { what, ours, theirs }) => Err(Error::Other {
            name: name.to_owned(),
            what,
            theirs,
            ours,
        }),
    }
}
