//! The program as a user runs it, without privileges.

mod bad_input;
mod cli;
mod convert;
mod damage;
mod images;
mod support;
