//! nydus-image
fn main() {}
