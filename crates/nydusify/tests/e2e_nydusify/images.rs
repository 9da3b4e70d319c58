//! The reference images, converted and checked; the privileged tests mount them too.

use testkit::shared_or_skip;

use crate::support::*;

#[test]
fn the_torture_image_is_converted_and_checked() {
    let Some(shared) = shared_or_skip("the_torture_image_is_converted_and_checked") else {
        return;
    };
    let source = format!("oci:{}:torture", shared.join("torture/image").display());
    let place = Place::new();
    convert(&source, &place.oci("nydus", "v6"), &["--check"]).ok();
    check(&source, &place.oci("nydus", "v6")).ok();
}
