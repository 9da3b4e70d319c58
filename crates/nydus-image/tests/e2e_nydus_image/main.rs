//! The builder as its consumers run it, without privileges.

mod consumer;
mod damage;
mod golden;
mod support;
