//! The examples of the documentation.

#[path = "../common/docs.rs"]
mod examples;

#[test]
fn examples_of_the_documentation_do_what_it_says() {
    examples::run(&[]);
}
