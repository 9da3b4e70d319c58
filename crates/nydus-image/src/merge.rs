//! `merge`: the bootstraps of layers into that of an image.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use builder::{encode, resolve_prefetch};
use inspect::CommandReport;
use rafs_format::{BlobFeatures, BlobId, BlobInfo, Digest};
use serde_json::Map;
use sha2::{Digest as _, Sha256};
use tree::Image;

use crate::args::{Merge, PrefetchPolicy};
use crate::blobs::Config;
use crate::dictionary;
use crate::interrupt::Interrupt;
use crate::report;
use crate::{Usage, output, parent, prefetch};

pub fn run(args: &Merge, interrupt: &Interrupt) -> anyhow::Result<()> {
    if let Some(path) = &args.config {
        Config::read(path)?;
    }
    let facts = Facts::new(args)?;
    let dictionary = match &args.chunk_dict {
        Some(value) => dictionary::blobs(value)?,
        None => BTreeSet::new(),
    };
    if let (None, Some(dir)) = (&args.bootstrap, &args.blob_dir) {
        output::check_dir("--blob-dir", dir)?;
    }
    output::check_places([args.bootstrap.as_ref(), args.output_json.as_ref()])?;
    let start = Instant::now();
    let patterns = prefetch::read(args.prefetch_policy)?;
    let parent = parent::load(args.parent_bootstrap.as_deref())?;
    let mut layers = Vec::from_iter(parent);
    for (number, source) in args.sources.iter().enumerate() {
        interrupt.cancel.check()?;
        // All that a layer does is done again by the same layer further up.
        let mut above = args.sources.iter().enumerate().skip(number + 1);
        if above.any(|(at, other)| other == source && facts.are_same(number, at)) {
            continue;
        }
        let mut layer = load(source)?;
        facts.apply(number, source, &mut layer, &dictionary)?;
        layers.push(layer);
    }
    let loaded = start.elapsed().as_secs_f64();
    let mut image = builder::merge(layers).context("cannot merge the layers")?;
    if args.prefetch_policy == PrefetchPolicy::Fs {
        image.prefetch = resolve_prefetch(&image.tree, &patterns);
    }
    let bootstrap = encode(&image).context("cannot encode the bootstrap")?;
    let path = match (&args.bootstrap, &args.blob_dir) {
        (Some(path), _) => path.clone(),
        (None, Some(dir)) => dir.join(hex::encode(Sha256::digest(&bootstrap))),
        (None, None) => bail!("there is no place for the bootstrap"),
    };
    let written = output::begin(&path, &bootstrap, &interrupt.unfinished)?;
    let blobs = image.blobs.iter().map(|blob| blob.id.to_string()).collect();
    let times = [
        ("load_tree_from_bootstrap", loaded),
        ("merge_bootstrap", start.elapsed().as_secs_f64()),
    ];
    let report = CommandReport::new(Some(&path), image.version, blobs, image.compressor)
        .trace(times, Map::new());
    let report = report::begin(&report, args.output_json.as_ref(), &interrupt.unfinished)?;
    output::commit_all([(written, path)].into_iter().chain(report))
}

/// Blob ids that a bootstrap leaves open stay so: the command line may know better than the file's name.
fn load(path: &Path) -> anyhow::Result<Image> {
    let bootstrap = storage::parse_bootstrap(path)?;
    bootstrap
        .load()
        .with_context(|| format!("cannot load {}", path.display()))
}

/// What the command line says about the blob of each layer.
#[derive(Debug, Default)]
struct Facts {
    /// Blobs are called what their bootstraps call them, where these do.
    recorded: bool,
    ids: Option<Vec<BlobId>>,
    digests: Option<Vec<Digest>>,
    sizes: Option<Vec<u64>>,
    toc_digests: Option<Vec<Digest>>,
    toc_sizes: Option<Vec<u32>>,
}

impl Facts {
    fn new(args: &Merge) -> Result<Self, Usage> {
        let id = |text: &String| BlobId::new(text.as_str());
        Ok(Self {
            recorded: args.config.is_some(),
            ids: list(args, "--original-blob-ids", &args.original_blob_ids, id)?,
            digests: list(args, "--blob-digests", &args.blob_digests, digest)?,
            sizes: list(args, "--blob-sizes", &args.blob_sizes, |size| Some(*size))?,
            toc_digests: list(args, "--blob-toc-digests", &args.blob_toc_digests, digest)?,
            toc_sizes: list(args, "--blob-toc-sizes", &args.blob_toc_sizes, |size| {
                Some(*size)
            })?,
        })
    }

    /// Whether the same is said of the blobs of two layers.
    fn are_same(&self, one: usize, other: usize) -> bool {
        fn same<T: PartialEq>(list: &Option<Vec<T>>, one: usize, other: usize) -> bool {
            list.as_ref().is_none_or(|list| list[one] == list[other])
        }
        same(&self.ids, one, other)
            && same(&self.digests, one, other)
            && same(&self.sizes, one, other)
            && same(&self.toc_digests, one, other)
            && same(&self.toc_sizes, one, other)
    }

    /// Enters them, or what the file name of the bootstrap says, into the layer's own blob.
    /// Blobs of the dictionary stay what they are.
    fn apply(
        &self,
        number: usize,
        source: &Path,
        layer: &mut Image,
        dictionary: &BTreeSet<BlobId>,
    ) -> anyhow::Result<()> {
        // The tar has the name that it was given when the layer was built.
        if layer.tarfs {
            return Ok(());
        }
        let Some(blob) = own_blob(source, layer, dictionary)? else {
            return Ok(());
        };
        let separate = blob.features.contains(BlobFeatures::SEPARATE);
        blob.id = match (&self.ids, &self.digests) {
            (_, Some(digests)) if !separate => {
                BlobId::new(hex::encode(digests[number])).context("a digest is an id")?
            }
            _ if self.recorded && !blob.id.is_placeholder() => blob.id.clone(),
            (Some(ids), _) if !self.recorded => ids[number].clone(),
            // The layer was digested when it was built; the bootstrap's file may be called as the other blob is. The
            // deployed tool takes that name all the same, and then looks for the layer's data there.
            _ if separate && !blob.id.is_placeholder() => blob.id.clone(),
            _ => name(source)?,
        };
        if separate {
            if let Some(digests) = &self.digests {
                blob.meta_digest = digests[number];
            } else if blob.meta_digest == [0; 32] {
                blob.meta_digest = table_blob(source, &blob.id)?;
            }
        }
        if let Some(sizes) = &self.sizes {
            let field = if separate {
                &mut blob.meta_size
            } else {
                &mut blob.compressed_size
            };
            *field = sizes[number];
        }
        if let Some(digests) = &self.toc_digests {
            blob.toc_digest = digests[number];
        }
        if let Some(sizes) = &self.toc_sizes {
            blob.toc_size = sizes[number];
        }
        Ok(())
    }
}

/// Takes a list that must have one item for each source.
fn list<T, U>(
    args: &Merge,
    flag: &str,
    items: &Option<Vec<T>>,
    parse: impl Fn(&T) -> Option<U>,
) -> Result<Option<Vec<U>>, Usage> {
    let Some(items) = items else { return Ok(None) };
    if items.len() != args.sources.len() {
        let (items, sources) = (items.len(), args.sources.len());
        return Err(Usage(format!(
            "{flag} has {items} items for {sources} sources: give one for each"
        )));
    }
    let parsed: Option<Vec<U>> = items.iter().map(parse).collect();
    parsed.map(Some).ok_or_else(|| {
        Usage(format!(
            "{flag} has an item that is no SHA-256 in hexadecimal or no id"
        ))
    })
}

fn digest(text: &String) -> Option<Digest> {
    hex::decode(text).ok()?.try_into().ok()
}

/// The blob that belongs to the layer: the only one that is not of the dictionary, or else the one that holds the
/// bootstrap.
fn own_blob<'a>(
    source: &Path,
    layer: &'a mut Image,
    dictionary: &BTreeSet<BlobId>,
) -> anyhow::Result<Option<&'a mut BlobInfo>> {
    let mut own: Vec<&mut BlobInfo> = layer
        .blobs
        .iter_mut()
        .filter(|blob| !dictionary.contains(&blob.id))
        // Those have the name that the attributes of their files say.
        .filter(|blob| !blob.features.contains(BlobFeatures::EXTERNAL))
        .collect();
    let inlined = |blob: &&mut BlobInfo| blob.features.contains(BlobFeatures::INLINED_FS_META);
    let count = own.len();
    if count > 1 {
        own.retain(inlined);
    }
    if count > 0 && own.is_empty() {
        bail!(
            "{} is no layer: it names {count} blobs; if they are of a chunk dictionary, give --chunk-dict",
            source.display()
        );
    }
    Ok(own.into_iter().next())
}

/// The blob with the chunk table of a layer whose data lies elsewhere, as the name of the bootstrap's file tells it.
fn table_blob(source: &Path, layer: &BlobId) -> anyhow::Result<Digest> {
    let named = name(source).ok().filter(|id| id != layer);
    let digest = named.and_then(|id| digest(&id.as_str().to_owned()));
    digest.with_context(|| {
        format!(
            "{}: it is not known which blob holds the chunk table of layer {layer}; give --blob-digests",
            source.display()
        )
    })
}

/// A blob is called as its bootstrap's file is, up to the first dot.
fn name(source: &Path) -> anyhow::Result<BlobId> {
    let name = source
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.split('.').next());
    name.and_then(BlobId::new).with_context(|| {
        format!(
            "{}: the file name does not tell the id of the blob",
            source.display()
        )
    })
}
