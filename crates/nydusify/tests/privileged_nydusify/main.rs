//! The program with real mounts: needs root, FUSE, the kernel's EROFS and erofs-utils.

mod damage;
mod life;
mod serving;
mod support;
mod trees;
