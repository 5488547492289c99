//! Weights and states of one device, by name.
//!
//! A weight keeps the format of its file: quantized blocks stay quantized, and bytes of a mapped file are shared, not copied. Trainable
//! weights and all states are owned f32. Tensors of at most one axis (norm weights, biases) are always stored as f32, because the
//! kernels that take them read floats. Two names may mean one tensor (tied weights).

mod bytes;
mod caches;
mod packed;
mod tensor;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use swift_kernels::panels;

use crate::buffer::Buffer;
use crate::{Error, Format, HostTensor, Result};

pub use bytes::{Bytes, Owner, decode, encode};
use caches::Cache;
pub use caches::Tenant;
use packed::Packed;
pub use packed::PackedState;
pub(crate) use packed::parts;
pub(crate) use tensor::{Storage, Tensor};

/// What a stored tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A parameter of the model or of an adapter.
    Weight,
    /// A tensor that runs keep: optimizer slots, gradient sums, KV caches.
    State,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Weight => "weight",
            Kind::State => "state",
        }
    }
}

/// A borrowed f32 tensor of the store, as checkpoints write it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseTensor<'a> {
    /// Weight or state.
    pub kind: Kind,
    /// Name.
    pub name: &'a str,
    /// Sizes.
    pub shape: &'a [usize],
    /// Elements.
    pub data: &'a [f32],
}

/// Bytes held, by category. A tensor of two names counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreBytes {
    /// Weights whose bytes are shared with their files.
    pub shared: usize,
    /// Weights in memory of their own: trainable, or converted on insertion.
    pub owned: usize,
    /// Weights repacked for products, beside their bytes.
    pub panels: usize,
    /// States and caches.
    pub states: usize,
}

impl StoreBytes {
    /// All of them.
    pub fn total(&self) -> usize {
        self.shared + self.owned + self.panels + self.states
    }
}

enum Entry {
    Tensor(Tensor),
    Alias(String),
}

/// Weights and states by name.
#[derive(Default)]
pub struct Store {
    weights: BTreeMap<String, Entry>,
    states: BTreeMap<String, Tensor>,
    /// States in 8 bits.
    packed: BTreeMap<String, Packed>,
    caches: BTreeMap<String, Cache>,
    /// Whoever wrote to the caches last.
    tenant: Option<Tenant>,
    revision: Revision,
}

/// Names a set of places in memory, among all that stores of this process ever held: as long as a store's revision stays, its tensors
/// stay where they are, in the format that they have. Values may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revision(u64);

impl Default for Revision {
    fn default() -> Revision {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Revision(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Store {
    /// An empty store in host memory; devices hand out theirs by [`crate::Device::store`].
    pub fn new() -> Store {
        Store::default()
    }

    /// Changes whenever a tensor comes, goes or moves.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    fn put_weight(&mut self, name: &str, entry: Entry) {
        self.revision = Revision::default();
        self.weights.insert(name.to_string(), entry);
    }

    fn put_state(&mut self, name: &str, state: Tensor) {
        self.revision = Revision::default();
        self.states.insert(name.to_string(), state);
    }

    /// Adds or replaces a frozen weight, in its file's format. Bytes are shared unless the tensor has at most one axis, or is F32 and
    /// not aligned.
    ///
    /// # Errors
    /// When the bytes do not fit shape and format.
    pub fn insert_weight(&mut self, name: &str, format: Format, shape: Vec<usize>, bytes: Bytes) -> Result<()> {
        let elements = elements("weight", name, &shape)?;
        let cols = shape.last().copied().unwrap_or(1);
        let (block, block_bytes) = (format.block_len(), format.block_bytes());
        let want = elements / block * block_bytes;
        if !cols.is_multiple_of(block) || bytes.as_slice().len() != want {
            let got = bytes.as_slice().len();
            let message = format!("of shape {shape:?} takes {want} bytes as {format:?} in rows of whole blocks, not {got}");
            return Err(Error::tensor("weight", name, message));
        }
        let aligned = bytes.as_slice().as_ptr().cast::<f32>().is_aligned() && cfg!(target_endian = "little");
        let keep = shape.len() > 1 && (format != Format::F32 || aligned);
        let mut tensor = Tensor { shape, storage: Storage::Shared(format, bytes, Arc::default()) };
        if !keep {
            tensor = Tensor::owned(tensor.shape.clone(), &tensor.to_floats(), "a weight")?;
        }
        self.put_weight(name, Entry::Tensor(tensor));
        Ok(())
    }

    /// Adds or replaces a weight of owned floats, which runs may write.
    ///
    /// # Errors
    /// When the shape does not hold the elements, or memory is short.
    pub fn insert_f32(&mut self, name: &str, shape: Vec<usize>, data: Vec<f32>) -> Result<()> {
        if elements("weight", name, &shape)? != data.len() {
            return Err(Error::tensor("weight", name, format!("of shape {shape:?} does not hold {} elements", data.len())));
        }
        let tensor = Tensor::owned(shape, &data, "a weight")?;
        self.put_weight(name, Entry::Tensor(tensor));
        Ok(())
    }

    /// Makes `name` another name of the weight `of`.
    ///
    /// # Errors
    /// When `of` does not exist or is `name` itself.
    pub fn alias(&mut self, name: &str, of: &str) -> Result<()> {
        let root = self.root(of)?.to_string();
        if root == name {
            return Err(Error::tensor("weight", name, "cannot be tied to itself"));
        }
        self.put_weight(name, Entry::Alias(root));
        Ok(())
    }

    /// Shares a weight of another store: file bytes are not copied, owned floats are.
    ///
    /// # Errors
    /// When `from` has no such weight, or memory is short.
    pub fn share_weight(&mut self, name: &str, from: &Store) -> Result<()> {
        let tensor = from.weight(name)?;
        let storage = match &tensor.storage {
            Storage::Shared(format, bytes, panels) => Storage::Shared(*format, bytes.clone(), Arc::clone(panels)),
            Storage::Owned(buffer) => Storage::Owned(Buffer::of(buffer.floats(), "a weight")?),
        };
        self.put_weight(name, Entry::Tensor(Tensor { shape: tensor.shape.clone(), storage }));
        Ok(())
    }

    /// Turns a weight into owned floats, which runs may write.
    ///
    /// # Errors
    /// When it does not exist, or memory is short.
    pub fn make_trainable(&mut self, name: &str) -> Result<()> {
        let root = self.root(name)?.to_string();
        if let Some(Entry::Tensor(tensor)) = self.weights.get_mut(&root)
            && let Storage::Shared(..) = tensor.storage
        {
            *tensor = Tensor::owned(tensor.shape.clone(), &tensor.to_floats(), "a trainable weight")?;
            self.revision = Revision::default();
        }
        Ok(())
    }

    /// Forgets a weight. Names tied to it become dangling.
    pub fn remove_weight(&mut self, name: &str) -> bool {
        self.revision = Revision::default();
        self.weights.remove(name).is_some()
    }

    /// Whether there is a weight of this name.
    pub fn has_weight(&self, name: &str) -> bool {
        self.root(name).is_ok()
    }

    /// Shape and format of a weight.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn weight_info(&self, name: &str) -> Result<(&[usize], Format)> {
        let tensor = self.weight(name)?;
        Ok((&tensor.shape, tensor.format()))
    }

    /// Whether a weight exists and is stored as f32, so that reading it is no work: what [`swift_graph::plan::plan`] asks.
    pub fn is_dense(&self, name: &str) -> bool {
        self.weight_info(name).is_ok_and(|(_, format)| format == Format::F32)
    }

    /// Whether [`crate::Precision::Int8`] makes a difference: some frozen weight is a matrix, or a stack of them, in a format of whole
    /// numbers.
    pub fn takes_int8(&self) -> bool {
        self.weights.values().any(|entry| match entry {
            Entry::Tensor(Tensor { shape, storage: Storage::Shared(format, ..) }) => {
                shape.len() > 1 && panels::repacked_bytes(*format, 1, format.block_len()).is_some()
            }
            _ => false,
        })
    }

    /// All weight names, tied ones included, in order.
    pub fn weight_names(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// A weight as floats, dequantized if need be.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn read_f32(&self, name: &str) -> Result<HostTensor> {
        let tensor = self.weight(name)?;
        Ok(HostTensor::F32 { shape: tensor.shape.clone(), data: tensor.to_floats() })
    }

    /// Some elements of a weight as floats, where they lie if it is f32: whole blocks of its format, say some of its rows.
    ///
    /// # Errors
    /// When it does not exist, or has no such elements.
    pub fn read_part(&self, name: &str, part: Range<usize>) -> Result<Cow<'_, [f32]>> {
        let tensor = self.weight(name)?;
        tensor.part(part.clone()).ok_or_else(|| {
            let (block, shape) = (tensor.format().block_len(), &tensor.shape);
            Error::tensor("weight", name, format!("of shape {shape:?} has no whole blocks of {block} in {part:?}"))
        })
    }

    /// Makes a state of zeros unless it exists.
    ///
    /// # Errors
    /// When it exists with another shape, or memory is short.
    pub fn ensure_state(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        match self.states.get(name) {
            Some(state) if state.shape == shape => Ok(()),
            Some(state) => {
                let message = format!("has shape {:?}, the run takes {shape:?}; remove it first", state.shape);
                Err(Error::tensor("state", name, message))
            }
            None => {
                let bytes = elements("state", name, shape)?.saturating_mul(4);
                let storage = Storage::Owned(Buffer::zeroed(bytes, "a state")?);
                self.put_state(name, Tensor { shape: shape.to_vec(), storage });
                Ok(())
            }
        }
    }

    /// Shape and elements of a state of floats, where they lie.
    ///
    /// # Errors
    /// When it does not exist, or is kept in 8 bits ([`Store::packed_state`]).
    pub fn state(&self, name: &str) -> Result<(&[usize], &[f32])> {
        match self.states.get(name) {
            Some(Tensor { shape, storage: Storage::Owned(buffer) }) => Ok((shape, buffer.floats())),
            _ => Err(Error::missing("state", name)),
        }
    }

    /// A state's elements.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn read_state(&self, name: &str) -> Result<HostTensor> {
        if let Some(state) = self.read_packed(name) {
            return Ok(state);
        }
        let state = self.states.get(name).ok_or_else(|| Error::missing("state", name))?;
        Ok(HostTensor::F32 { shape: state.shape.clone(), data: state.to_floats() })
    }

    /// Sets a state, whether or not it exists.
    ///
    /// # Errors
    /// When the shape does not hold the elements, or memory is short.
    pub fn write_state(&mut self, name: &str, shape: Vec<usize>, data: &[f32]) -> Result<()> {
        if elements("state", name, &shape)? != data.len() {
            return Err(Error::tensor("state", name, format!("of shape {shape:?} does not hold {} elements", data.len())));
        }
        self.put_state(name, Tensor::owned(shape, data, "a state")?);
        Ok(())
    }

    /// Sets every element of a state to zero; without the state, nothing.
    pub fn zero_state(&mut self, name: &str) {
        if let Some(state) = self.packed.get_mut(name) {
            state.buffer.bytes_mut().fill(0);
        }
        if let Some(Tensor { storage: Storage::Owned(buffer), .. }) = self.states.get_mut(name) {
            buffer.floats_mut().fill(0.0);
        }
    }

    /// Forgets a state.
    pub fn remove_state(&mut self, name: &str) -> bool {
        self.revision = Revision::default();
        self.packed.remove(name).is_some() | self.states.remove(name).is_some()
    }

    /// Whether there is a state of this name.
    pub fn has_state(&self, name: &str) -> bool {
        self.states.contains_key(name) || self.packed.contains_key(name)
    }

    /// All state names, in order, those in 8 bits last.
    pub fn state_names(&self) -> impl Iterator<Item = &str> {
        self.states.keys().chain(self.packed.keys()).map(String::as_str)
    }

    /// Everything that is owned floats: what a checkpoint may have to keep. Frozen weights in their files' formats are not listed, nor
    /// states in 8 bits ([`Store::packed_state`]).
    pub fn dense(&self) -> impl Iterator<Item = DenseTensor<'_>> {
        let weights = self.weights.iter().filter_map(|(name, entry)| match entry {
            Entry::Tensor(tensor) => Some((Kind::Weight, name, tensor)),
            Entry::Alias(_) => None,
        });
        let states = self.states.iter().map(|(name, tensor)| (Kind::State, name, tensor));
        weights.chain(states).filter_map(|(kind, name, tensor)| match &tensor.storage {
            Storage::Owned(buffer) => Some(DenseTensor { kind, name, shape: &tensor.shape, data: buffer.floats() }),
            Storage::Shared(..) => None,
        })
    }

    /// Puts a tensor of a checkpoint back. A weight must exist with this shape; a state may be new.
    ///
    /// # Errors
    /// When the tensor does not fit.
    pub fn restore(&mut self, kind: Kind, name: &str, shape: &[usize], data: &[f32]) -> Result<()> {
        let existing = match kind {
            Kind::Weight => Some(self.weight(name)?),
            Kind::State => self.states.get(name),
        };
        if let Some(tensor) = existing
            && tensor.shape != shape
        {
            let message = format!("has shape {:?}, the checkpoint {shape:?}", tensor.shape);
            return Err(Error::tensor(kind.name(), name, message));
        }
        match kind {
            Kind::Weight => {
                let root = self.root(name)?.to_string();
                self.insert_f32(&root, shape.to_vec(), data.to_vec())
            }
            Kind::State => self.write_state(name, shape.to_vec(), data),
        }
    }

    /// Bytes held, by category.
    pub fn bytes(&self) -> StoreBytes {
        let mut bytes = StoreBytes::default();
        for entry in self.weights.values() {
            match entry {
                Entry::Tensor(Tensor { storage: Storage::Shared(_, b, panels), .. }) => {
                    bytes.shared += b.count();
                    bytes.panels += panels.get().map_or(0, Buffer::bytes);
                }
                Entry::Tensor(Tensor { storage: Storage::Owned(b), .. }) => bytes.owned += b.bytes(),
                Entry::Alias(_) => {}
            }
        }
        for state in self.states.values() {
            if let Storage::Owned(b) = &state.storage {
                bytes.states += b.bytes();
            }
        }
        bytes.states += self.packed.values().map(|state| state.buffer.bytes()).sum::<usize>();
        bytes.states += self.caches.values().map(|cache| cache.buffer.bytes()).sum::<usize>();
        bytes
    }

    fn root<'a>(&'a self, name: &'a str) -> Result<&'a str> {
        match self.weights.get_key_value(name) {
            Some((name, Entry::Tensor(_))) => Ok(name),
            // Aliases point at tensors, never at each other, unless the tensor was removed or replaced by an alias.
            Some((_, Entry::Alias(of))) if matches!(self.weights.get(of), Some(Entry::Tensor(_))) => Ok(of),
            _ => Err(Error::missing("weight", name)),
        }
    }

    pub(crate) fn weight(&self, name: &str) -> Result<&Tensor> {
        match self.weights.get(self.root(name)?) {
            Some(Entry::Tensor(tensor)) => Ok(tensor),
            _ => Err(Error::missing("weight", name)),
        }
    }

    pub(crate) fn weight_mut(&mut self, name: &str) -> Result<&mut Tensor> {
        let root = self.root(name)?.to_string();
        match self.weights.get_mut(&root) {
            Some(Entry::Tensor(tensor)) => Ok(tensor),
            _ => Err(Error::missing("weight", name)),
        }
    }

    /// Lets the memory of a frozen weight's bytes go, which the device keeps in panels from now on. They may lie elsewhere afterwards.
    pub(crate) fn release(&mut self, name: &str) -> Result<()> {
        if let Storage::Shared(_, bytes, _) = &mut self.weight_mut(name)?.storage {
            bytes.release();
            // Programs that were bound before read the panels, too.
            self.revision = Revision::default();
        }
        Ok(())
    }

    pub(crate) fn state_mut(&mut self, name: &str) -> Result<&mut Buffer> {
        match self.states.get_mut(name) {
            Some(Tensor { storage: Storage::Owned(buffer), .. }) => Ok(buffer),
            _ => Err(Error::missing("state", name)),
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (weights, states) = (self.weights.len(), self.states.len());
        f.debug_struct("Store").field("weights", &weights).field("states", &states).field("bytes", &self.bytes()).finish()
    }
}

fn elements(kind: &'static str, name: &str, shape: &[usize]) -> Result<usize> {
    let product = shape.iter().try_fold(1usize, |p, &d| p.checked_mul(d));
    product.ok_or_else(|| Error::tensor(kind, name, format!("has shape {shape:?}, more elements than memory has addresses")))
}

#[cfg(test)]
mod tests {
    use swift_kernels::quant;

    use super::*;

    fn quantized(values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; Format::Q8_0.row_bytes(values.len())];
        quant::quantize(Format::Q8_0, values, &mut bytes);
        bytes
    }

    #[test]
    fn quantized_bytes_are_shared_and_vectors_converted() {
        let values: Vec<f32> = (0..64).map(|i| i as f32 - 30.0).collect();
        let mut store = Store::new();
        store.insert_weight("m", Format::Q8_0, vec![2, 32], quantized(&values).into()).unwrap();
        store.insert_weight("v", Format::Q8_0, vec![64], quantized(&values).into()).unwrap();
        assert_eq!(store.weight_info("m").unwrap(), (&[2usize, 32][..], Format::Q8_0));
        assert_eq!(store.weight_info("v").unwrap().1, Format::F32);
        assert_eq!(store.read_f32("m").unwrap().floats().unwrap(), store.read_f32("v").unwrap().floats().unwrap());
        for name in ["m", "v"] {
            let whole = store.read_f32(name).unwrap();
            assert_eq!(*store.read_part(name, 32..64).unwrap(), whole.floats().unwrap()[32..]);
        }
        for wrong in [16..32, 32..96, 40..64] {
            let error = store.read_part("m", wrong).unwrap_err().to_string();
            assert!(error.contains("no whole blocks of 32"), "{error}");
        }
        assert_eq!(store.bytes(), StoreBytes { shared: 68, owned: 256, ..StoreBytes::default() });
        let mut other = Store::new();
        other.share_weight("m", &store).unwrap();
        assert_eq!(other.bytes().shared, 68);
        assert!(other.takes_int8());
        other.make_trainable("m").unwrap();
        assert!(!other.takes_int8());
        assert!(store.insert_weight("m", Format::Q8_0, vec![4, 16], quantized(&values).into()).is_err());
    }

    #[test]
    fn tied_weights_are_one_tensor() {
        let mut store = Store::new();
        store.insert_f32("embed", vec![2, 2], vec![1.0; 4]).unwrap();
        store.alias("head", "embed").unwrap();
        assert!(store.alias("embed", "head").is_err());
        store.restore(Kind::Weight, "head", &[2, 2], &[2.0; 4]).unwrap();
        assert_eq!(store.read_f32("embed").unwrap().floats().unwrap(), [2.0; 4]);
        assert_eq!((store.bytes().owned, store.dense().count()), (16, 1));
        assert!(store.remove_weight("embed"));
        assert!(!store.has_weight("head"));
    }

    #[test]
    fn states_are_made_kept_and_checked() {
        let mut store = Store::new();
        store.ensure_state("s", &[3]).unwrap();
        store.write_state("s", vec![3], &[1.0, 2.0, 3.0]).unwrap();
        store.ensure_state("s", &[3]).unwrap();
        assert!(store.ensure_state("s", &[4]).is_err());
        assert!(store.restore(Kind::State, "s", &[4], &[0.0; 4]).is_err());
        assert_eq!(store.read_state("s").unwrap().floats().unwrap(), [1.0, 2.0, 3.0]);
        store.zero_state("s");
        assert_eq!(store.read_state("s").unwrap().floats().unwrap(), [0.0; 3]);
        assert!(store.write_state("s", vec![2], &[0.0]).is_err());
    }

    #[test]
    fn bytes_stay_inside_their_owner() {
        let owner: Arc<dyn Owner> = Arc::new(vec![0u8; 8]);
        assert!(Bytes::new(Arc::clone(&owner), 4..9).is_err());
        assert_eq!(Bytes::new(owner, 4..8).unwrap().as_slice().len(), 4);
    }
}
