//! The examples of the documentation that mount.

use testkit::{oracle, skip};

use crate::support::*;

#[path = "../common/docs.rs"]
mod examples;

#[test]
fn privileged_examples_of_the_documentation_do_what_it_says() {
    const NAME: &str = "privileged_examples_of_the_documentation_do_what_it_says";
    if let Some(why) = oracle::no_fuse() {
        return skip(NAME, why);
    }
    let mut there = vec!["FUSE"];
    if oracle::is_root() {
        there.push("root");
    }
    let doctor = testkit::run::run(NYDUSIFY, ["doctor", "--output", "json"]);
    if doctor.stdout.contains(r#""erofs":true"#) {
        there.push("Linux 6.15");
    } else {
        skip(
            NAME,
            "mount --mode erofs does not work here: see nydusify doctor",
        );
    }
    examples::run(&there);
}
