//! Quantization of a model's linear layers while they are loaded, for QLoRA and for serving in less memory.

use std::collections::HashSet;

use swift_plugin::SiteKind;
use swift_runtime::{Bytes, Format, Store, encode, round_nf4_scales};

use crate::{AdaptedModel, Result, ServeError};

/// NF4 as bitsandbytes makes it: blocks of 64 with their largest magnitude as scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// Round the scales to 8 bits around their mean. They are kept in f32 all the same: values are those of bitsandbytes' double
    /// quantization, memory is 4.5 bits a weight either way.
    pub double: bool,
}

/// What is rounded, and how.
pub(crate) struct Plan {
    quantization: Quantization,
    /// Base parameters.
    params: HashSet<String>,
}

impl AdaptedModel {
    /// Rounds the weight of every linear layer when it is loaded, one after the other; embeddings, the head, norms and biases stay as
    /// they are, and so does what is trained. Comes before [`AdaptedModel::adapt`], so that methods see quantized layers.
    ///
    /// # Errors
    /// When a layer is quantized already, or its rows are not whole blocks.
    pub fn quantize(&mut self, quantization: Quantization) -> Result<()> {
        let block = Format::Nf4.block_len();
        let declared: HashSet<&str> = self.plan.params.iter().map(|p| p.name.as_str()).collect();
        let mut params = HashSet::new();
        for site in self.sites.iter_mut().filter(|s| matches!(s.kind, SiteKind::Linear | SiteKind::GroupedLinear)) {
            if site.quantised {
                let message =
                    format!("`{}` is stored in blocks already and cannot be quantized again; load the model as it is", site.path);
                return Err(ServeError::Request(message));
            }
            if !(site.d_in as usize).is_multiple_of(block) {
                let message =
                    format!("`{}` has rows of {} values, which are no whole NF4 blocks of {block}", site.path, site.d_in);
                return Err(ServeError::Request(message));
            }
            site.quantised = true;
            let names = [format!("{}.weight", site.path), site.path.clone()];
            params.extend(names.into_iter().find(|name| declared.contains(name.as_str())));
        }
        self.quantization = Some(Plan { quantization, params });
        Ok(())
    }

    /// Whether a base parameter is to be rounded when it is loaded.
    pub(crate) fn is_rounded(&self, param: &str) -> bool {
        self.quantization.as_ref().is_some_and(|plan| plan.params.contains(param))
    }

    /// Puts the rounded `values` of a parameter, one matrix or a stack of them, into the store.
    pub(crate) fn insert_rounded(&self, store: &mut Store, param: &str, shape: Vec<usize>, values: &[f32]) -> Result<()> {
        let double = self.quantization.as_ref().is_some_and(|plan| plan.quantization.double);
        let matrix = shape.iter().rev().take(2).product::<usize>().max(1);
        let mut bytes = Vec::with_capacity(Format::Nf4.row_bytes(values.len()));
        for matrix in values.chunks(matrix) {
            let mut blocks = encode(Format::Nf4, matrix);
            if double {
                round_nf4_scales(&mut blocks);
            }
            bytes.append(&mut blocks);
        }
        store.insert_weight(param, Format::Nf4, shape, Bytes::from(bytes))?;
        Ok(())
    }
}
