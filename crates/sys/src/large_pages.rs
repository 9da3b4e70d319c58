use std::ffi::c_void;

use rustix::mm::{Advice, madvise};

/// Less is not worth a large page: twice the size of one on most processors.
const WORTH: usize = 4 << 20;
/// A multiple of the page size of every processor.
const PAGE: usize = 64 << 10;

/// Asks the kernel to back this memory with large pages. For large tables that are read at random places: with pages of
/// 4 KiB, the processor looks up where a page is more often than it finds the answer in its cache. Memory that was
/// written to before keeps its pages, so this comes before the first write. Only a wish: nothing fails without it.
pub fn prefer_large_pages<T>(memory: &mut [T]) {
    let range = memory.as_mut_ptr_range();
    let begin = (range.start as usize).next_multiple_of(PAGE);
    let end = range.end as usize / PAGE * PAGE;
    if end.saturating_sub(begin) < WORTH {
        return;
    }
    // SAFETY: the whole pages between two places of memory that is borrowed; their contents stay.
    let _ = unsafe { madvise(begin as *mut c_void, end - begin, Advice::LinuxHugepage) };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_kernel_is_asked_and_contents_stay() {
        let mut memory = vec![0_u32; 4 << 20];
        let at = format!("{:x}", (memory.as_ptr() as usize).next_multiple_of(PAGE));
        prefer_large_pages(&mut memory);
        memory.fill(7);
        assert!(memory.iter().all(|number| *number == 7));
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&at));
        let flags = lines.find(|line| line.starts_with("VmFlags:"));
        assert!(flags.unwrap().contains(" hg"), "{flags:?}");
        // What is small or not aligned stays as it is.
        prefer_large_pages::<u8>(&mut []);
        prefer_large_pages(&mut [0_u8; 3]);
    }
}
