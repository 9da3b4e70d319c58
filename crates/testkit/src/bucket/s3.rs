//! s3s-fs over a temporary directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

use super::{Bucket, KEY_ID, NAME, SECRET, reply};

pub(super) fn start() -> Bucket {
    let dir = Arc::new(tempfile::tempdir().expect("make a directory"));
    fs::create_dir(dir.path().join(NAME)).expect("make the bucket");
    let store = s3s_fs::FileSystem::new(dir.path()).expect("open the bucket");
    let mut builder = S3ServiceBuilder::new(store);
    builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
    let service = builder.build();
    let (root, uploads) = (Arc::clone(&dir), dir);
    Bucket::start(
        "s3",
        Arc::new(move |request| {
            let service = service.clone();
            Box::pin(async move {
                match service.call(request.map(s3s::Body::from)).await {
                    Ok(response) => response,
                    Err(error) => reply(500, format!("{error:?}")),
                }
            })
        }),
        Box::new(move || {
            let bucket = root.path().join(NAME);
            let mut objects = BTreeMap::new();
            collect(&bucket, &bucket, &mut objects);
            objects
        }),
        Box::new(move || {
            let names = fs::read_dir(uploads.path()).expect("list the store");
            let names = names.map(|entry| entry.expect("list the store").file_name());
            names
                .filter(|name| name.to_string_lossy().contains("upload"))
                .count()
        }),
    )
}

fn collect(bucket: &Path, dir: &Path, objects: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(dir).expect("list the bucket") {
        let path = entry.expect("list the bucket").path();
        if path.is_dir() {
            collect(bucket, &path, objects);
        } else {
            let name = path.strip_prefix(bucket).expect("below the bucket");
            let bytes = fs::read(&path).expect("read an object");
            objects.insert(name.to_string_lossy().into_owned(), bytes);
        }
    }
}
