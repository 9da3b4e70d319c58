//! What a person at a terminal sees; `script` gives the program one.

use testkit::run::run;

use crate::support::*;

#[test]
fn a_terminal_shows_bars_and_the_conversion_succeeds() {
    if testkit::oracle::program("script").is_none() {
        return testkit::skip(
            "a_terminal_shows_bars_and_the_conversion_succeeds",
            "no script",
        );
    }
    let place = Place::new();
    let target = place.oci("nydus", "v6");
    let command = format!(
        "{NYDUSIFY} -log-level debug convert -source {} -target={target} -check",
        fixture()
    );
    let log = place.path("typescript");
    run("script", ["-qec", &command, log.to_str().unwrap()])
        .ok()
        .says(&["layer ", "total", "\u{1b}["]);
    check(&fixture(), &target).ok();
}
