//! The examples of the documentation that the kernel takes part in.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "common/docs.rs"]
mod examples;

#[test]
fn privileged_examples_of_the_documentation_do_what_it_says() {
    if let Some(why) = testkit::oracle::no_erofs() {
        return testkit::skip(
            "privileged_examples_of_the_documentation_do_what_it_says",
            why,
        );
    }
    examples::run(&["root"]);
}
