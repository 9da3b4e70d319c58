//! Media types, and what this program makes of them.

use crate::Error;

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer: tar, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer: tar, not compressed.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer: tar, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer: tar, zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// What a manifest-like media type stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest,
    /// A list of manifests or further indexes.
    Index,
}

/// What the media type of a manifest or index stands for.
///
/// # Errors
/// [`Error::MediaType`] for all others, with the name of `what`.
pub fn document(media_type: &str, what: &str) -> Result<Document, Error> {
    match media_type {
        OCI_MANIFEST | DOCKER_MANIFEST => Ok(Document::Manifest),
        OCI_INDEX | DOCKER_LIST => Ok(Document::Index),
        "application/vnd.docker.distribution.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Err(refused(
            media_type,
            what,
            "push the image again with a current client to get schema 2",
        )),
        _ => Err(refused(
            media_type,
            what,
            "it is no image manifest or index",
        )),
    }
}

/// What the layers of an image hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// A tar of a file system layer; how it is compressed is told by its first bytes.
    Tar,
    /// A Nydus blob.
    NydusBlob,
}

/// What the media type of a layer stands for.
///
/// # Errors
/// [`Error::MediaType`] for foreign (non-distributable), encrypted and unknown layers, with the name of `what`.
pub fn layer(media_type: &str, what: &str) -> Result<Layer, Error> {
    const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
    if media_type.ends_with("+encrypted") {
        return Err(refused(
            media_type,
            what,
            "encrypted layers must be decrypted first",
        ));
    }
    if media_type.contains(".nondistributable.") || media_type.contains(".foreign.") {
        return Err(refused(
            media_type,
            what,
            "foreign (non-distributable) layers cannot be converted",
        ));
    }
    match media_type {
        OCI | OCI_LAYER_GZIP | DOCKER_LAYER | DOCKER_LAYER_GZIP | DOCKER_LAYER_ZSTD => {
            Ok(Layer::Tar)
        }
        _ if media_type.strip_prefix(OCI) == Some("+zstd") => Ok(Layer::Tar),
        crate::nydus::BLOB_MEDIA_TYPE => Ok(Layer::NydusBlob),
        _ => Err(refused(media_type, what, "it is no file system layer")),
    }
}

/// Whether a manifest media type is Docker's.
pub fn is_docker(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.docker.")
}

fn refused(media_type: &str, what: &str, reason: &'static str) -> Error {
    Error::MediaType {
        media_type: media_type.to_owned(),
        what: what.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_cannot_be_converted_are_refused_by_name() {
        for (media_type, word) in [
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                "foreign",
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                "foreign",
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                "encrypted",
            ),
            (
                "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
                "no file system layer",
            ),
        ] {
            let error = layer(media_type, "layer sha256:77")
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(word) && error.contains(media_type) && error.contains("sha256:77"),
                "{error}"
            );
        }
        for good in [
            OCI_LAYER_GZIP,
            DOCKER_LAYER,
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ] {
            assert_eq!(layer(good, "x").unwrap(), Layer::Tar);
        }
    }
}
