//! `nydusify`, which is in the library of that name.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    nydusify::main()
}
