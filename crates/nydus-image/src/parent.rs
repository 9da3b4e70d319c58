//! `--parent-bootstrap`: the image below.

use std::path::Path;

use anyhow::Context as _;
use tree::Image;

/// The path in the value of the option; an empty one is none.
pub fn path(value: Option<&str>) -> Option<&Path> {
    value.filter(|value| !value.is_empty()).map(Path::new)
}

/// Loads the image, if there is one.
pub fn load(value: Option<&str>) -> anyhow::Result<Option<Image>> {
    let Some(path) = path(value) else {
        return Ok(None);
    };
    let failed = || format!("cannot read the parent bootstrap {}", path.display());
    let loaded = storage::load_bootstrap(path).with_context(failed)?;
    loaded.image().with_context(failed).map(Some)
}
