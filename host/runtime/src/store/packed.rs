//! States in 8 bits, each in one buffer.

use std::ops::Range;

use swift_graph::StateInfo;
use swift_graph::dynamic8::Map;
use swift_kernels::dynamic8::{self, PackedMut};
use swift_kernels::pool::Pool;

use super::{Revision, Store, elements};
use crate::buffer::Buffer;
use crate::{Error, HostTensor, Result};

pub(crate) fn kernel_map(map: Map) -> dynamic8::Map {
    match map {
        Map::Signed => dynamic8::Map::Signed,
        Map::Unsigned => dynamic8::Map::Unsigned,
    }
}

/// The parts of a state's words.
pub(crate) fn parts(map: Map, len: usize, words: &mut [u32]) -> PackedMut<'_> {
    PackedMut::of(kernel_map(map), len, words)
}

/// A state in 8 bits.
pub(super) struct Packed {
    map: Map,
    shape: Vec<usize>,
    pub(super) buffer: Buffer,
}

impl Packed {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn codes(&self) -> Range<usize> {
        let start = 4 * dynamic8::codes_at(self.len());
        start..start + self.len()
    }
}

/// A borrowed state in 8 bits, as checkpoints write it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PackedState<'a> {
    /// What elements are rounded to.
    pub map: Map,
    /// Sizes.
    pub shape: &'a [usize],
    /// Numbers of the map's entries, one for each element.
    pub codes: &'a [u8],
    /// Largest magnitude of each block of [`swift_graph::dynamic8::BLOCK`] elements.
    pub absmax: &'a [f32],
}

impl Store {
    /// Makes a state of zeros, kept as the graph says, unless it exists.
    ///
    /// # Errors
    /// When it exists with another shape or kept otherwise, or memory is short.
    pub fn ensure(&mut self, info: &StateInfo, shape: &[usize]) -> Result<()> {
        let Some(map) = info.map else {
            if self.packed.contains_key(&info.name) {
                let message = "is kept in 8 bits, the run takes floats; remove it first";
                return Err(Error::tensor("state", &info.name, message));
            }
            return self.ensure_state(&info.name, shape);
        };
        if self.states.contains_key(&info.name) {
            let message = "is kept as floats, the run takes 8 bits; remove it first";
            return Err(Error::tensor("state", &info.name, message));
        }
        match self.packed.get(&info.name) {
            Some(state) if state.shape == shape && state.map == map => Ok(()),
            Some(state) => {
                let (is, takes) = (state.map.name(), map.name());
                let message = format!("is {is}{:?}, the run takes {takes}{shape:?}; remove it first", state.shape);
                Err(Error::tensor("state", &info.name, message))
            }
            None => {
                let words = dynamic8::words(elements("state", &info.name, shape)?);
                let buffer = Buffer::zeroed(words.saturating_mul(4), "a state")?;
                self.revision = Revision::default();
                self.packed.insert(info.name.clone(), Packed { map, shape: shape.to_vec(), buffer });
                Ok(())
            }
        }
    }

    /// A state in 8 bits; `None` if there is none of this name.
    pub fn packed_state(&self, name: &str) -> Option<PackedState<'_>> {
        let state = self.packed.get(name)?;
        let absmax = &state.buffer.floats()[..dynamic8::blocks(state.len())];
        Some(PackedState { map: state.map, shape: &state.shape, codes: &state.buffer.as_slice()[state.codes()], absmax })
    }

    /// Sets a state in 8 bits, which exists.
    ///
    /// # Errors
    /// When it does not, or is of another shape.
    pub fn write_packed_state(&mut self, name: &str, shape: &[usize], codes: &[u8], absmax: &[f32]) -> Result<()> {
        let state = self.packed.get_mut(name).ok_or_else(|| Error::missing("state", name))?;
        let blocks = dynamic8::blocks(state.len());
        if state.shape != shape || codes.len() != state.len() || absmax.len() != blocks {
            let message = format!("of shape {:?} takes as many bytes and {blocks} scales, not {shape:?}", state.shape);
            return Err(Error::tensor("state", name, message));
        }
        let range = state.codes();
        state.buffer.bytes_mut()[range].copy_from_slice(codes);
        state.buffer.floats_mut()[..blocks].copy_from_slice(absmax);
        Ok(())
    }

    /// A state in 8 bits as floats.
    pub(super) fn read_packed(&self, name: &str) -> Option<HostTensor> {
        let PackedState { map, shape, codes, absmax } = self.packed_state(name)?;
        let mut data = vec![0.0; codes.len()];
        dynamic8::dequantize(&Pool::new(1), kernel_map(map), codes, absmax, &mut data);
        Some(HostTensor::F32 { shape: shape.to_vec(), data })
    }

    /// The words of a state, however it is kept.
    pub(crate) fn words_mut(&mut self, info: &StateInfo) -> Result<&mut Buffer> {
        match info.map {
            None => self.state_mut(&info.name),
            Some(_) => {
                let state = self.packed.get_mut(&info.name);
                state.map(|state| &mut state.buffer).ok_or_else(|| Error::missing("state", &info.name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use swift_graph::{Shape, Type};

    use super::*;

    #[test]
    fn made_written_read_and_checked() {
        let info = |map| StateInfo { name: "m".into(), ty: Type::f32(Shape::fixed(&[2, 300])), map };
        let mut store = Store::new();
        store.ensure(&info(Some(Map::Signed)), &[2, 300]).unwrap();
        store.ensure(&info(Some(Map::Signed)), &[2, 300]).unwrap();
        assert_eq!((store.bytes().states, store.has_state("m")), (64 + 600, true));
        assert!(store.read_state("m").unwrap().floats().unwrap().iter().all(|&x| x == 0.0));
        for other in [info(None), info(Some(Map::Unsigned))] {
            assert!(store.ensure(&other, &[2, 300]).is_err());
        }
        let codes: Vec<u8> = (0..600).map(|i| i as u8).collect();
        store.write_packed_state("m", &[2, 300], &codes, &[1.0, 2.0, 4.0]).unwrap();
        assert!(store.write_packed_state("m", &[300, 2], &codes, &[1.0, 2.0, 4.0]).is_err());
        assert!(store.write_packed_state("m", &[2, 300], &codes, &[1.0]).is_err());
        let kept = store.packed_state("m").unwrap();
        assert_eq!((kept.codes, kept.absmax), (&codes[..], &[1.0, 2.0, 4.0][..]));
        let values = Map::Signed.values();
        let HostTensor::F32 { data, .. } = store.read_state("m").unwrap() else { panic!("no floats") };
        assert!(data.iter().enumerate().all(|(i, x)| *x == values[i % 256] * [1.0, 2.0, 4.0][i / 256]));
        assert!(store.remove_state("m") && !store.has_state("m"));
    }
}
