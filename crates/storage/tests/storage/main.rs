//! Reading images through the public interface.

mod crash;
mod golden;
mod image;
mod store;
