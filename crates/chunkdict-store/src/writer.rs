//! Changes of a dictionary.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::time::{Duration, SystemTime};

use rafs_format::Digest;

use crate::catalogue::{Catalogue, Entry, Removed};
use crate::draft::Draft;
use crate::{Error, ImageId, Import, Store};

/// The one who may change a dictionary. Each change is complete and on stable storage when its method returns, or was
/// not made at all.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    _lock: File,
    catalogue: Catalogue,
}

/// What became of a dictionary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// The snapshot of its images; `None` without any.
    pub snapshot: Option<Digest>,
    /// Places of chunks before.
    pub before: usize,
    /// Places of chunks now.
    pub after: usize,
}

/// What `gc` did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images that are forgotten.
    pub dropped: Vec<Entry>,
    /// Images that are still to go, and why they stay for now.
    pub kept: Vec<(Entry, Stays)>,
    /// Old snapshots that were deleted.
    pub snapshots: usize,
    /// Their size in bytes.
    pub bytes: u64,
}

/// Why an image that is to go stays for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// The grace period has not passed.
    Grace,
    /// Somebody holds a snapshot with it.
    Leased,
}

impl Writer {
    pub(crate) fn new(store: Store, lock: File, catalogue: Catalogue) -> Self {
        Self {
            store,
            _lock: lock,
            catalogue,
        }
    }

    /// Which images the dictionary is of.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Adds images. One of the same name and platform that was another image before makes room for the new one.
    ///
    /// # Errors
    /// [`Error::Other`], [`Error::Contradiction`], and what keeps the dictionary from being read or written. Nothing
    /// has changed then.
    pub fn add(&mut self, imports: Vec<Import>) -> Result<Changed, Error> {
        let mut next = self.catalogue.clone();
        for import in &imports {
            let entry = Entry {
                name: import.name.clone(),
                platform: import.platform.clone(),
                id: import.id,
                added: now(),
                absent: None,
            };
            next.removed.retain(|removed| {
                !removed.entry.is_place_of(&entry) || removed.entry.id != entry.id
            });
            let (mut same, other): (Vec<_>, Vec<_>) = std::mem::take(&mut next.images)
                .into_iter()
                .partition(|known| known.is_place_of(&entry));
            next.images = other;
            same.retain(|known| known.id != entry.id);
            let moved = same.into_iter().map(|entry| Removed {
                entry,
                removed: now(),
            });
            next.removed.extend(moved);
            next.images.push(entry);
        }
        self.change(next, imports)
    }

    /// Takes images out by their names. Their chunks are not used any more unless other images have them, too; `gc`
    /// forgets them.
    ///
    /// # Errors
    /// [`Error::NoImage`], and what keeps the dictionary from being read or written. Nothing has changed then.
    pub fn remove(&mut self, names: &[String]) -> Result<Changed, Error> {
        let mut next = self.catalogue.clone();
        if let Some(unknown) = names.iter().find(|name| next.named(name).next().is_none()) {
            return Err(Error::NoImage(unknown.clone()));
        }
        let (gone, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut next.images)
            .into_iter()
            .partition(|entry| names.contains(&entry.name));
        next.images = stay;
        next.removed.extend(gone.into_iter().map(|entry| Removed {
            entry,
            removed: now(),
        }));
        self.change(next, Vec::new())
    }

    /// Notes which images are gone from where they lay, and which are not. The time of the first such note stays.
    ///
    /// # Errors
    /// What keeps the catalogue from being written.
    pub fn note_absent(&mut self, absent: impl Fn(&Entry) -> Option<bool>) -> Result<(), Error> {
        let mut next = self.catalogue.clone();
        for entry in &mut next.images {
            match absent(entry) {
                Some(true) => drop(entry.absent.get_or_insert_with(now)),
                Some(false) => entry.absent = None,
                None => {}
            }
        }
        self.put(next)
    }

    /// Forgets images that were removed, or are known to be absent, for `grace` at least and that nobody uses; deletes
    /// snapshots that are neither the current one nor used.
    ///
    /// # Errors
    /// What keeps the dictionary from being read or written.
    pub fn gc(&mut self, grace: Duration) -> Result<Collected, Error> {
        let leased = self.store.leased()?;
        let mut collected = Collected::default();
        let mut goes = |entry: &Entry, since: u64| {
            let stays = if now().saturating_sub(since) < grace.as_secs() {
                Stays::Grace
            } else if leased.contains(&entry.id) {
                Stays::Leased
            } else {
                collected.dropped.push(entry.clone());
                return true;
            };
            collected.kept.push((entry.clone(), stays));
            false
        };
        let mut next = self.catalogue.clone();
        next.removed
            .retain(|removed| !goes(&removed.entry, removed.removed));
        next.images
            .retain(|entry| entry.absent.is_none_or(|since| !goes(entry, since)));
        if next.images.len() != self.catalogue.images.len() {
            self.change(next, Vec::new())?;
        } else if next != self.catalogue {
            self.put(next)?;
        }
        let current = self
            .catalogue
            .snapshot
            .map(|id| self.store.snapshot_path(&id));
        for path in self.store.snapshot_files()? {
            if Some(&path) == current.as_ref() {
                continue;
            }
            let failed = || Error::io("delete", &path);
            let file = File::open(&path).map_err(failed())?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => continue,
                locked => locked.map_err(|error| failed()(error.into()))?,
            }
            let size = file.metadata().map_err(failed())?.len();
            fs::remove_file(&path).map_err(failed())?;
            collected.snapshots += 1;
            collected.bytes += size;
        }
        Ok(collected)
    }

    /// Makes the snapshot anew of what its images have by now, whatever state it is in. Images that are not among
    /// `imports` are taken out.
    ///
    /// # Errors
    /// As [`Writer::add`].
    pub fn rebuild(&mut self, imports: Vec<Import>) -> Result<Changed, Error> {
        let mut next = self.catalogue.clone();
        let read: BTreeSet<ImageId> = imports.iter().map(|import| import.id).collect();
        let (stay, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut next.images)
            .into_iter()
            .partition(|entry| read.contains(&entry.id));
        next.images = stay;
        next.removed.extend(gone.into_iter().map(|entry| Removed {
            entry,
            removed: now(),
        }));
        self.build(Draft::default(), next, imports, 0)
    }

    /// Makes `next` the catalogue, with a snapshot of its images: what `imports` has is added to what is known.
    fn change(&mut self, next: Catalogue, imports: Vec<Import>) -> Result<Changed, Error> {
        let (draft, before) = match self.catalogue.snapshot {
            None => (Draft::default(), 0),
            Some(id) => {
                let snapshot = self.store.load(id)?;
                (Draft::of(&snapshot), snapshot.index().len())
            }
        };
        self.build(draft, next, imports, before)
    }

    fn build(
        &mut self,
        mut draft: Draft,
        mut next: Catalogue,
        imports: Vec<Import>,
        before: usize,
    ) -> Result<Changed, Error> {
        let live: BTreeSet<ImageId> = next.images.iter().map(|entry| entry.id).collect();
        draft.remove(|id| !live.contains(id));
        for import in imports {
            if live.contains(&import.id) {
                draft.add(import)?;
            }
        }
        let snapshot = draft.finish()?;
        if let Some(snapshot) = &snapshot {
            snapshot.save(&self.store.snapshots())?;
        }
        next.snapshot = snapshot.as_ref().map(crate::Snapshot::id);
        self.put(next)?;
        Ok(Changed {
            snapshot: self.catalogue.snapshot,
            before,
            after: snapshot.map_or(0, |snapshot| snapshot.index().len()),
        })
    }

    fn put(&mut self, mut next: Catalogue) -> Result<(), Error> {
        next.images.sort();
        next.save(self.store.dir())?;
        self.catalogue = next;
        Ok(())
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
