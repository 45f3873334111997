//! Where something lies in guest memory.

use std::io;

use super::save::{data, slice};
use super::{Ram, Region};

/// How much of a region is looked at in one go, in bytes.
const CHUNK: u64 = 1 << 20;

impl Ram {
    /// Where these are: which of them, and at what guest address, by address. One that
    /// lies across two regions isn't found.
    ///
    /// # Errors
    /// When there are more than `most` places.
    pub fn find(&self, wanted: &[&[u8]], most: usize) -> io::Result<Vec<(usize, u64)>> {
        let finders: Vec<_> = wanted.iter().map(memchr::memmem::Finder::new).collect();
        let longest = wanted.iter().map(|one| one.len() as u64).max().unwrap_or(0);
        let mut found = Vec::new();
        for region in self.regions() {
            let parts: Vec<_> = match region.mapping().file() {
                // To look at a hole of a memory file would fill it.
                Some(file) => data(file, 0..region.size()).collect::<io::Result<_>>()?,
                None => std::iter::once(0..region.size()).collect(),
            };
            for part in parts {
                let mut at = part.start;
                while at < part.end {
                    let end = part.end.min(at + CHUNK);
                    // With the end of the last one, where one may have begun.
                    let begin = part.start.max(at.saturating_sub(longest));
                    let bytes = read(region, begin, end)?;
                    for (which, finder) in finders.iter().enumerate() {
                        for offset in finder.find_iter(&bytes) {
                            found.push((which, region.start() + begin + offset as u64));
                            if found.len() > 2 * most {
                                return Err(too_many(most));
                            }
                        }
                    }
                    at = end;
                }
            }
        }
        found.sort_unstable_by_key(|(which, at)| (*at, *which));
        found.dedup();
        if found.len() > most {
            return Err(too_many(most));
        }
        Ok(found)
    }
}

fn too_many(most: usize) -> io::Error {
    io::Error::other(format!("what is looked for is in more than {most} places"))
}

fn read(region: &Region, begin: u64, end: u64) -> io::Result<Vec<u8>> {
    let part = slice(region, &(begin..end))?;
    let mut bytes = vec![0; part.len()];
    part.copy_to(&mut bytes[..]);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::{Options, Ram};
    use super::*;

    fn check(options: Options) {
        let ranges = [(0, 2 * CHUNK + 0x1000), (0x1000_0000, 0x2000)];
        let memory = Ram::new(&ranges, options).expect("memory");
        let put = |bytes: &[u8], at| memory.write_slice(bytes, GuestAddress(at)).expect("there");
        let places = [0, 0xffe, CHUNK - 1, CHUNK, CHUNK + 10, 0x1000_1ffc];
        // Each with its end out of the other's way.
        for at in places.into_iter().filter(|at| *at != CHUNK) {
            put(b"long", at);
        }
        put(b"ng", 0x1_0000);
        put(b"longest", 2 * CHUNK - 3);
        let found = memory.find(&[b"longest", b"ng"], 99).expect("found");
        let ng = [2, 0x1000, 0x1_0000, CHUNK + 1, CHUNK + 12];
        let mut expected: Vec<_> = ng.map(|at| (1, at)).to_vec();
        expected.extend([(0, 2 * CHUNK - 3), (1, 2 * CHUNK - 1), (1, 0x1000_1ffe)]);
        assert_eq!(found, expected);
        assert_eq!(memory.find(&[b"nowhere"], 0).expect("looked"), []);
        assert!(memory.find(&[b"ng"], 6).is_err());
        assert!(memory.find(&[b"ng"], 7).is_ok());
    }

    #[test]
    fn it_is_found_wherever_it_lies_and_once() {
        check(Options::default());
        let shared = Options {
            shared: true,
            ..Options::default()
        };
        check(shared);
    }
}
