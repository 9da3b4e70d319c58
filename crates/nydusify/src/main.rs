//! nydusify
fn main() {}
