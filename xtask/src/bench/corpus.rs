//! Data that is the same in every run, and that no tool can make smaller than it is by much.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Result;
use sha2::{Digest as _, Sha256};

/// Bytes of a line, its newline included.
pub(super) const LINE: u64 = 100;

/// Lines of [`LINE`] bytes, each with its number first; returns the SHA-256 of them all.
pub(super) fn lines(path: &Path, count: u64) -> Result<String> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut hash = Sha256::new();
    let mut random = Random(1);
    for number in 0..count {
        let mut line = format!("{number:012} ");
        while line.len() < LINE as usize - 1 {
            line.push(char::from(b'a' + (random.next() % 26) as u8));
        }
        line.push('\n');
        hash.update(&line);
        out.write_all(line.as_bytes())?;
    }
    out.flush()?;
    Ok(hex::encode(hash.finalize()))
}

/// Small files of 0.5 to 3.5 KiB, a hundred to a folder.
pub(super) fn small_files(folder: &Path, count: u64) -> Result<()> {
    let mut random = Random(2);
    for number in 0..count {
        let place = folder.join(format!("{:05}", number / 100));
        if number % 100 == 0 {
            std::fs::create_dir_all(&place)?;
        }
        let mut content = vec![0; 512 + (random.next() % 3072) as usize];
        random.fill(&mut content);
        std::fs::write(place.join(format!("{number:07}.bin")), content)?;
    }
    Ok(())
}

pub(super) fn large_file(path: &Path, bytes: u64) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut random = Random(3);
    let mut block = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        random.fill(&mut block);
        let part = left.min(block.len() as u64);
        out.write_all(&block[..part as usize])?;
        left -= part;
    }
    Ok(out.flush()?)
}

/// xorshift64*: quick, and the same everywhere.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 8
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(7) {
            let random = self.next().to_le_bytes();
            part.copy_from_slice(&random[..part.len()]);
        }
    }
}
