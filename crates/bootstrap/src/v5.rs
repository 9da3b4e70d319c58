//! The v5 bootstrap of an image, and back.

mod encode;
mod load;
mod view;

pub use encode::encode_v5;
pub use load::load_v5;
pub use view::view_v5;
