//! The manifest rule: documents are those of an image of their kind, and the configurations of both sides agree.

use image::nydus::{ANNOTATION_BLOB, ANNOTATION_BOOTSTRAP, ANNOTATION_REF, BLOB_MEDIA_TYPE};
use serde_json::{Map, Value};

use crate::report::{Rule, RuleReport};
use crate::side::{Document, Side};

/// Applies the rule to one or both sides.
pub(crate) fn check(source: Option<&Side>, target: &Side) -> RuleReport {
    let mut report = RuleReport::new(Rule::Manifest);
    let mut notes = Vec::new();
    for (what, side) in [("source", source), ("target", Some(target))] {
        let Some((side, document)) = side.and_then(|side| Some((side, side.document.as_ref()?)))
        else {
            continue;
        };
        check_document(&side.name, document, &mut report);
        notes.push(format!(
            "{what} of {} layers",
            document.manifest.layers.len()
        ));
    }
    if notes.is_empty() {
        return RuleReport::skipped(Rule::Manifest, "there is no manifest");
    }
    if let (Some(source), Some(target)) = (
        source.and_then(|side| side.document.as_ref()),
        &target.document,
    ) {
        compare_configs(&source.config, &target.config, &mut report);
    }
    report.note = notes.join(", ");
    report
}

fn check_document(name: &str, document: &Document, report: &mut RuleReport) {
    let layers = &document.manifest.layers;
    let diff_ids = diff_ids(&document.config);
    let counted = diff_ids.len() == layers.len();
    if !counted {
        report.problem(format!(
            "{name}: {} layers, but {} diff ids",
            layers.len(),
            diff_ids.len()
        ));
    }
    if let Some(platform) = &document.platform {
        let stated = |key: &str| document.config.get(key).and_then(Value::as_str);
        for (key, entry) in [
            ("architecture", &platform.architecture),
            ("os", &platform.os),
        ] {
            if stated(key) != Some(entry) {
                report.problem(format!(
                    "{name}: {key} {} in the configuration, {entry:?} in the index",
                    show(document.config.get(key))
                ));
            }
        }
    }
    // Which diff id is whose is only known if there is one for each.
    let diff_id = |index: usize| diff_ids.get(index).filter(|_| counted);
    let Some(bootstrap_diff_id) = &document.bootstrap_diff_id else {
        return;
    };
    let Some((bootstrap, blobs)) = layers.split_last() else {
        return;
    };
    if bootstrap.annotation(ANNOTATION_BOOTSTRAP) != Some("true") {
        report.problem(format!(
            "{name}: the last layer {} is not annotated as bootstrap",
            bootstrap.digest
        ));
    }
    for (index, blob) in blobs.iter().enumerate() {
        if blob.media_type != BLOB_MEDIA_TYPE {
            report.problem(format!(
                "{name}: layer {} has media type {:?}",
                blob.digest, blob.media_type
            ));
        }
        if blob.annotation(ANNOTATION_BLOB) != Some("true") {
            report.problem(format!(
                "{name}: layer {} is not annotated as blob",
                blob.digest
            ));
        }
        let own = blob.digest.to_string();
        if blob.annotation(ANNOTATION_REF).is_none()
            && diff_id(index).is_some_and(|diff_id| **diff_id != *own)
        {
            report.problem(format!(
                "{name}: the diff id of blob layer {own} is not its digest"
            ));
        }
    }
    let actual = bootstrap_diff_id.to_string();
    if diff_id(blobs.len()).is_some_and(|recorded| **recorded != *actual) {
        report.problem(format!(
            "{name}: the bootstrap layer decompresses to {actual}, which is not its diff id"
        ));
    }
}

fn diff_ids(config: &Value) -> Vec<&str> {
    let ids = config.pointer("/rootfs/diff_ids").and_then(Value::as_array);
    ids.into_iter()
        .flatten()
        .map(|id| id.as_str().unwrap_or_default())
        .collect()
}

/// What containers run with must be the same, as must the platform.
fn compare_configs(source: &Value, target: &Value, report: &mut RuleReport) {
    let (old, new) = (run_config(source), run_config(target));
    for key in old
        .keys()
        .chain(new.keys().filter(|key| !old.contains_key(*key)))
    {
        if old.get(key) != new.get(key) {
            report.problem(format!(
                "config.{key}: source {}, target {}",
                show(old.get(key)),
                show(new.get(key))
            ));
        }
    }
    for key in ["architecture", "os", "variant"] {
        let (old, new) = (source.get(key), target.get(key));
        if old != new {
            report.problem(format!("{key}: source {}, target {}", show(old), show(new)));
        }
    }
}

/// The `config` object without what an encoder may leave out, and without `ArgsEscaped`.
fn run_config(config: &Value) -> Map<String, Value> {
    let mut run = config
        .get("config")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    run.retain(|key, value| {
        let empty = match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        key != "ArgsEscaped" && !empty
    });
    run
}

fn show(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}
