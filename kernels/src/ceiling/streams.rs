//! What memory gives: arrays past the caches, read and copied.
//!
//! What memory gives moves while others use it, by more than a kernel is faster than another. [`Streams`] therefore stays and is run in turn
//! with the kernel that it is compared with.

use std::hint::black_box;
use std::time::Instant;

use super::{RUNS, best};
use crate::isa::Isa;
use crate::pages::prefer_huge;
use crate::pool::Pool;

/// Bytes of the arrays: two are larger than the largest caches in use.
const STREAMED: usize = 256 << 20;

/// Bytes of the arrays of [`Stream::CopyNear`].
const NEAR: usize = 64 << 20;

/// Bytes a task streams at a time.
const PIECE: usize = 1 << 20;

/// Floats by which reading may look ahead; the best counts. Some processors by themselves look no further than a page.
const LOOKS: [usize; 3] = [0, 512, 4096];

/// What is done with the arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// [`super::Ceilings::read`].
    Read,
    /// [`super::Ceilings::copy`].
    Copy,
    /// [`super::Ceilings::copy_near`].
    CopyNear,
}

/// Two arrays of 256 MB, and the ways to read and write them that are fastest here.
pub struct Streams {
    /// Each has a line more, to begin with a whole one.
    source: Vec<f32>,
    target: Vec<f32>,
    ahead: usize,
    /// Whether copies are stored past the caches, for arrays of 256 MB and of [`NEAR`].
    past: [bool; 2],
}

impl Streams {
    /// Half a gigabyte, and some runs to learn what is fastest.
    pub fn new(pool: &Pool) -> Streams {
        let [source, target] = [1.0, 0.0].map(|value| {
            let len = STREAMED / size_of::<f32>() + 16;
            let mut values = Vec::with_capacity(len);
            prefer_huge(values.spare_capacity_mut());
            values.resize(len, value);
            values
        });
        let mut streams = Streams { source, target, ahead: 0, past: [false; 2] };
        let faster = |a: &f64, b: &f64| a.total_cmp(b);
        let read = LOOKS.map(|ahead| best(|| streams.read(pool, ahead)));
        let copy = [STREAMED, NEAR].map(|bytes| [false, true].map(|past| best(|| streams.copy(pool, bytes, past))));
        let first = (0..LOOKS.len()).min_by(|&a, &b| faster(&read[a], &read[b])).unwrap_or(0);
        streams.ahead = LOOKS[first];
        streams.past = copy.map(|[through, past]| past < through);
        streams
    }

    /// Bytes a second of one run.
    pub fn rate(&mut self, pool: &Pool, stream: Stream) -> f64 {
        let start = Instant::now();
        self.run(pool, stream) / start.elapsed().as_secs_f64()
    }

    /// Bytes a second of the fastest of some runs.
    pub(super) fn fastest(&mut self, pool: &Pool, stream: Stream) -> f64 {
        (0..RUNS).map(|_| self.rate(pool, stream)).fold(0.0, f64::max)
    }

    /// Returns how many bytes were read, or read and written.
    fn run(&mut self, pool: &Pool, stream: Stream) -> f64 {
        let [far, near] = self.past;
        match stream {
            Stream::Read => self.read(pool, self.ahead),
            Stream::Copy => self.copy(pool, STREAMED, far),
            Stream::CopyNear => self.copy(pool, NEAR, near),
        }
        match stream {
            Stream::Read => STREAMED as f64,
            Stream::Copy => 2.0 * STREAMED as f64,
            Stream::CopyNear => 2.0 * NEAR as f64,
        }
    }

    fn read(&self, pool: &Pool, ahead: usize) {
        let (source, piece) = (&self.source[lines(&self.source)..], PIECE / size_of::<f32>());
        pool.run(STREAMED / PIECE, &|task| {
            black_box(sum(pool.isa(), &source[task * piece..][..piece], ahead));
        });
    }

    fn copy(&mut self, pool: &Pool, bytes: usize, past: bool) {
        let (source, piece) = (&self.source[lines(&self.source)..], PIECE / size_of::<f32>());
        let first = lines(&self.target);
        pool.run_pieces(&mut self.target[first..][..bytes / size_of::<f32>()], piece, |task, target| {
            scale(pool.isa(), &source[task * piece..][..target.len()], target, past);
        });
    }
}

/// Where the first whole line begins.
fn lines(values: &[f32]) -> usize {
    values.as_ptr().align_offset(64)
}

fn sum(isa: Isa, x: &[f32], ahead: usize) -> f32 {
    match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => super::vector::sum(isa, x, ahead),
        _ => x.iter().sum(),
    }
}

fn scale(isa: Isa, x: &[f32], out: &mut [f32], past: bool) {
    match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => super::vector::scale(isa, x, out, past),
        _ => out.iter_mut().zip(x).for_each(|(out, x)| *out = 1.5 * x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_reads_and_writes_all() {
        for isa in Isa::available() {
            let x: Vec<f32> = (0..4096u16).map(f32::from).collect();
            assert!(LOOKS.iter().all(|&ahead| sum(isa, &x, ahead) == 4095.0 * 2048.0), "{isa}");
            for (past, start) in [(false, 0), (true, 0), (true, 3)] {
                let mut out = vec![0.0; x.len() - start];
                scale(isa, &x[start..], &mut out, past);
                assert!(out.iter().zip(&x[start..]).all(|(out, x)| *out == 1.5 * x), "{isa}");
            }
        }
    }
}
