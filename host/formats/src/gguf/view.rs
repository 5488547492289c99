//! Tensors of a GGUF file as Hugging Face has them: names, shapes, row order. What lies in the file in the right order is borrowed.

use std::borrow::Cow;

use super::architecture::{Architecture, RowOrder, Stored};
use super::llama::HeadCounts;
use super::{Gguf, TensorInfo};
use crate::{Format, FormatError, Result, TensorView};

/// A GGUF file that is read as a model.
#[derive(Debug)]
pub(crate) struct Model {
    /// The file.
    pub(crate) file: Box<Gguf>,
    /// Its architecture.
    pub(crate) architecture: &'static Architecture,
    heads: HeadCounts,
}

impl Model {
    pub(crate) fn new(file: Gguf) -> Result<Model> {
        let architecture = Architecture::of(&file)?;
        let heads = HeadCounts::in_gguf(&file, architecture)?;
        Ok(Model { file: Box::new(file), architecture, heads })
    }

    /// Whether there is a tensor of that Hugging Face name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.architecture.find(&self.file, name).is_some()
    }

    /// Whether a tensor, or a part of it, is stored in blocks with a scale; nothing is read for that.
    pub(crate) fn is_quantized(&self, name: &str) -> bool {
        let stored = self.architecture.find(&self.file, name);
        stored.is_some_and(|stored| stored.infos().iter().any(|info| info.kind.format().is_some_and(Format::is_quantized)))
    }

    /// Says that a tensor will not be read soon; of a stack, its own slice.
    pub(crate) fn release(&self, name: &str) {
        let Some(stored) = self.architecture.find(&self.file, name) else { return };
        if let Stored::Slice { .. } = stored {
            if let Ok(TensorView { data: Cow::Borrowed(bytes), .. }) = self.in_order(name) {
                self.file.release(bytes);
            }
            return;
        }
        stored.infos().iter().for_each(|info| self.file.release(self.file.bytes(info)));
    }

    /// A tensor as Hugging Face has it.
    pub(crate) fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let view = self.in_order(name)?;
        if self.is_turned(name) { view.turned(self.file.path(), name) } else { Ok(view) }
    }

    /// A matrix that Hugging Face has as `[in, out]`, as `[out, in]`.
    pub(crate) fn transposed(&self, name: &str) -> Result<TensorView<'_>> {
        let view = self.in_order(name)?;
        if self.is_turned(name) { Ok(view) } else { view.turned(self.file.path(), name) }
    }

    /// All matrices of a stack, if these are their names in order and nothing need be moved.
    pub(crate) fn stack(&self, names: &[String]) -> Result<Option<TensorView<'_>>> {
        let mut whole: Option<&TensorInfo> = None;
        for (i, name) in names.iter().enumerate() {
            match self.architecture.find(&self.file, name) {
                Some(Stored::Slice { stack, index }) if index == i && whole.is_none_or(|w| w.name == stack.name) => {
                    whole = Some(stack);
                }
                _ => return Ok(None),
            }
        }
        match whole.filter(|stack| stack.shape().first() == Some(&names.len())) {
            Some(stack) => self.whole(stack).map(Some),
            None => Ok(None),
        }
    }

    fn is_turned(&self, name: &str) -> bool {
        self.architecture.turned
            && self.architecture.in_block(name)
            && name.ends_with(".weight")
            && matches!(self.architecture.find(&self.file, name), Some(Stored::Whole(t)) if t.dims.len() == 2)
    }

    /// A tensor as it is stored, its rows in Hugging Face's order.
    fn in_order(&self, name: &str) -> Result<TensorView<'_>> {
        let path = self.file.path();
        match self.architecture.find(&self.file, name).ok_or_else(|| FormatError::missing(path, name))? {
            Stored::Whole(info) => self.ordered(name, info),
            Stored::Slice { stack, index } => {
                let view = self.whole(stack)?;
                let count = view.shape[0];
                let size = view.data.len() / count;
                let Cow::Borrowed(bytes) = view.data else { return Err(FormatError::missing(path, name)) };
                let data = Cow::Borrowed(&bytes[index * size..(index + 1) * size]);
                Ok(TensorView { format: view.format, shape: view.shape[1..].to_vec(), data })
            }
            Stored::Joined(infos) => {
                let (stem, _) = name.rsplit_once('.').unwrap_or((name, ""));
                // The roles that decide about the order of rows, in llama's words.
                let roles = ["q_proj", "k_proj", "v_proj"].map(|role| format!("{stem}.self_attn.{role}.weight"));
                let parts = infos.iter().zip(&roles).map(|(info, role)| self.ordered(role, info)).collect::<Result<Vec<_>>>()?;
                join(&parts).ok_or_else(|| {
                    FormatError::unsupported(path, format!("`{name}` is stored in parts of different formats or widths"))
                })
            }
            Stored::Latent { keys, values } => {
                let (keys, values) = (self.whole(keys)?, self.whole(values)?);
                latent(&keys, &values).ok_or_else(|| {
                    let reason = format!(
                        "`{name}` is stored as {} {:?} and {} {:?}",
                        keys.format, keys.shape, values.format, values.shape
                    );
                    FormatError::unsupported(path, reason)
                })
            }
        }
    }

    fn ordered(&self, name: &str, info: &TensorInfo) -> Result<TensorView<'_>> {
        let path = self.file.path();
        let TensorView { format, mut shape, data } = self.whole(info)?;
        let Cow::Borrowed(stored) = data else { return Err(FormatError::missing(path, name)) };
        if name.ends_with("shared_expert_gate.weight") && shape.len() == 1 {
            // Its one row has no axis of its own in some files.
            shape.insert(0, 1);
        }
        let data: Cow<'_, [u8]> = match self.architecture.rows {
            RowOrder::Pairs => self.heads.unpermute(path, name, shape[0], stored)?,
            RowOrder::Fused if name.contains(".query_key_value.") => {
                Cow::Owned(self.heads.interleave(path, name, shape[0], stored)?)
            }
            RowOrder::Fused | RowOrder::Same => Cow::Borrowed(stored),
        };
        let view = TensorView { format, shape, data };
        if self.architecture.norms_plus_one && name.ends_with("norm.weight") {
            return minus_one(&view).ok_or_else(|| {
                FormatError::unsupported(path, format!("tensor `{name}` is a norm in blocks of {}, not floats", view.format))
            });
        }
        Ok(view)
    }

    /// A tensor of the file as it is.
    fn whole(&self, info: &TensorInfo) -> Result<TensorView<'_>> {
        let info = self.file.tensor(&info.name).ok_or_else(|| FormatError::missing(self.file.path(), &info.name))?;
        let format = info.kind.format().ok_or_else(|| {
            let reason = format!(
                "tensor `{}` has type {}; F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K and IQ4_NL are read, so get or make the model in one of these",
                info.name, info.kind.name
            );
            FormatError::unsupported(self.file.path(), reason)
        })?;
        Ok(TensorView { format, shape: info.shape(), data: Cow::Borrowed(self.file.bytes(info)) })
    }
}

/// Rows one after the other; `None` where formats or widths differ.
fn join(parts: &[TensorView<'_>]) -> Option<TensorView<'static>> {
    let first = parts.first()?;
    if parts
        .iter()
        .any(|part| part.format != first.format || part.shape.len() != first.shape.len() || part.shape[1..] != first.shape[1..])
    {
        return None;
    }
    let mut shape = first.shape.clone();
    shape[0] = parts.iter().map(|part| part.shape[0]).sum();
    let data: Vec<u8> = parts.iter().flat_map(|part| part.data.iter().copied()).collect();
    Some(TensorView { format: first.format, shape, data: Cow::Owned(data) })
}

/// `kv_b_proj`, `[heads · (key + value), latent]`, from keys `[heads, latent, key]` and values `[heads, value, latent]`. Keys are turned,
/// which blocks cannot be, so the result is f32.
fn latent(keys: &TensorView<'_>, values: &TensorView<'_>) -> Option<TensorView<'static>> {
    let (&[heads, rank, key], &[value_heads, value, value_rank]) = (keys.shape.as_slice(), values.shape.as_slice()) else {
        return None;
    };
    if heads != value_heads || rank != value_rank {
        return None;
    }
    let (k, v) = (keys.to_f32()?, values.to_f32()?);
    let mut out = Vec::with_capacity(heads * (key + value) * rank * 4);
    for head in 0..heads {
        for row in 0..key {
            out.extend((0..rank).flat_map(|c| k[(head * rank + c) * key + row].to_le_bytes()));
        }
        out.extend(v[head * value * rank..(head + 1) * value * rank].iter().flat_map(|x| x.to_le_bytes()));
    }
    Some(TensorView { format: Format::F32, shape: vec![heads * (key + value), rank], data: Cow::Owned(out) })
}

/// A norm's weight without the 1 that was added to it.
fn minus_one(view: &TensorView<'_>) -> Option<TensorView<'static>> {
    let data = view.to_f32()?.iter().flat_map(|w| (w - 1.0).to_le_bytes()).collect();
    Some(TensorView { format: Format::F32, shape: view.shape.clone(), data: Cow::Owned(data) })
}
