//! The program in `examples` does what it says.

use image::{Node, Source, nydus};

use crate::world::{World, oci};

#[path = "../../examples/convert.rs"]
#[allow(dead_code, reason = "its main reads the command line")]
mod convert_example;

#[test]
fn the_example_converts_an_image() {
    let world = World::new();
    let source = format!("oci:{}", testkit::fixture::busybox().display());
    let target = format!("oci:{}:t", world.target().display());
    let report = convert_example::convert(&source, &target).unwrap();
    assert_eq!(report.converted, 1);
    let image = Source::open(&oci(&world.target(), Some("t"))).unwrap();
    assert_eq!(image.root().digest, report.digest);
    let Node::Manifest(manifest) = image.node(image.root()).unwrap() else {
        panic!("an image becomes an image");
    };
    assert!(nydus::is_nydus(&manifest));
}
