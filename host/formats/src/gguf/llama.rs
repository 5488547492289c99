//! The `llama` architecture between GGUF and Hugging Face: names, row order, configuration.
//!
//! GGUF stores the rows of the query and key projections so that rotary pairs are neighbours (`0, 1`), where Hugging
//! Face keeps halves (`0, d/2`): within a head of `d` rows, GGUF row `2j + h` is Hugging Face row `h·d/2 + j`. Whole
//! rows move, so quantized blocks stay as they are and the round trip is exact.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::architecture::{Architecture, LLAMA};
use super::config::Metadata;
use super::{GgmlType, Gguf, TensorSource, Value};
use crate::{FormatError, NamedTensor, Result};

/// Per-frequency divisors of the Llama 3 rotary embedding; described by the configuration, not a weight.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Which rows a projection's heads own, for those whose rows are permuted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heads {
    Query,
    Key,
}

fn permuted_heads(hf_name: &str) -> Option<Heads> {
    let (stem, _) = hf_name.rsplit_once('.')?;
    if stem.ends_with(".self_attn.q_proj") {
        Some(Heads::Query)
    } else if stem.ends_with(".self_attn.k_proj") {
        Some(Heads::Key)
    } else {
        None
    }
}

/// Direction of the row permutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    ToHf,
    ToGguf,
}

/// Moves the rows of a query or key projection; `None` if the rows do not make `heads` heads of an even size.
fn permute(data: &[u8], rows: usize, heads: usize, order: Order) -> Option<Vec<u8>> {
    if heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) || !data.len().is_multiple_of(rows) {
        return None;
    }
    let (row_bytes, head, half) = (data.len() / rows, rows / heads, rows / heads / 2);
    let mut out = Vec::with_capacity(data.len());
    for row in 0..rows {
        let (first, within) = (row / head * head, row % head);
        let from = match order {
            Order::ToHf => 2 * (within % half) + within / half,
            Order::ToGguf => (within % 2) * half + within / 2,
        };
        let start = (first + from) * row_bytes;
        out.extend_from_slice(&data[start..start + row_bytes]);
    }
    Some(out)
}

/// Head counts, needed to bring rows back into Hugging Face order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadCounts {
    query: usize,
    key: usize,
}

impl HeadCounts {
    pub(crate) fn of(config: &Json) -> Option<Self> {
        let count = |key: &str| usize::try_from(config.get(key)?.as_u64()?).ok();
        let query = count("num_attention_heads")?;
        Some(Self { query, key: count("num_key_value_heads").unwrap_or(query) })
    }

    fn get(self, heads: Heads) -> usize {
        match heads {
            Heads::Query => self.query,
            Heads::Key => self.key,
        }
    }

    /// Those that a file's metadata gives.
    pub(crate) fn in_gguf(gguf: &Gguf, architecture: &Architecture) -> Result<Self> {
        let (query, key) = Metadata::new(gguf, architecture.name).heads()?;
        Ok(Self { query: query as usize, key: key as usize })
    }

    /// Stored bytes of a tensor in Hugging Face row order.
    pub(crate) fn unpermute<'a>(self, path: &Path, hf_name: &str, rows: usize, data: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        self.reorder(path, hf_name, rows, data, Order::ToHf)
    }

    /// Rows of fused queries, keys and values, head by head as in Hugging Face; GGUF has all queries first.
    pub(crate) fn interleave(self, path: &Path, hf_name: &str, rows: usize, data: &[u8]) -> Result<Vec<u8>> {
        let parts = 3 * self.query;
        if parts == 0 || !rows.is_multiple_of(parts) || rows == 0 || !data.len().is_multiple_of(rows) {
            let reason = format!("`{hf_name}` has {rows} rows, which are not queries, keys and values of {} heads", self.query);
            return Err(FormatError::invalid(path, reason));
        }
        let head = data.len() / parts;
        let piece = |at: usize| (at % 3 * self.query + at / 3) * head;
        Ok((0..parts).flat_map(|at| data[piece(at)..piece(at) + head].iter().copied()).collect())
    }

    fn reorder<'a>(self, path: &Path, hf_name: &str, rows: usize, data: &'a [u8], order: Order) -> Result<Cow<'a, [u8]>> {
        let Some(heads) = permuted_heads(hf_name) else { return Ok(Cow::Borrowed(data)) };
        let heads = self.get(heads);
        permute(data, rows, heads, order).map(Cow::Owned).ok_or_else(|| {
            FormatError::invalid(path, format!("`{hf_name}` has {rows} rows, which are not {heads} heads of an even size"))
        })
    }
}

/// Synthesises `config.json` from metadata.
pub(super) fn config(gguf: &Gguf) -> Result<Map<String, Json>> {
    let path = gguf.path();
    let invalid = |reason: String| FormatError::invalid(path, reason);
    let key = |name: &str| format!("llama.{name}");
    let optional = |name: &str| gguf.get(&key(name)).and_then(Value::as_u64);
    let integer = |name: &str| match optional(name) {
        Some(value) if value > 0 && value <= u64::from(u32::MAX) => Ok(value),
        Some(value) => Err(invalid(format!("metadata `llama.{name}` is {value}, which is out of range"))),
        None => Err(invalid(format!("metadata `llama.{name}` is missing or not an integer"))),
    };
    let hidden = integer("embedding_length")?;
    let heads = integer("attention.head_count")?;
    let kv_heads = if gguf.get(&key("attention.head_count_kv")).is_some() { integer("attention.head_count_kv")? } else { heads };
    let head_dim = match optional("attention.key_length") {
        Some(length) => length,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(invalid(format!("{heads} heads do not divide an embedding of {hidden}"))),
    };
    if heads % kv_heads != 0 {
        return Err(invalid(format!("{kv_heads} key/value heads do not divide {heads} heads")));
    }
    if let Some(rotated) = optional("rope.dimension_count").filter(|&rotated| rotated != head_dim) {
        let reason = format!("rotary embedding over {rotated} of {head_dim} dimensions");
        return Err(FormatError::unsupported(path, reason));
    }
    let embedding = gguf.tensor("token_embd.weight").ok_or_else(|| FormatError::missing(path, "token_embd.weight"))?;
    let vocab = embedding.dims.get(1).copied().unwrap_or(0);
    let eps = float(gguf, "llama.attention.layer_norm_rms_epsilon")
        .ok_or_else(|| invalid("metadata `llama.attention.layer_norm_rms_epsilon` is missing".into()))?;
    let theta = float(gguf, "llama.rope.freq_base").unwrap_or(10_000.0);
    let context = integer("context_length")?;

    let mut config = Map::new();
    let mut set = |key: &str, value: Json| config.insert(key.to_owned(), value);
    set("hidden_act", json!("silu"));
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(integer("feed_forward_length")?));
    set("num_hidden_layers", json!(integer("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(kv_heads));
    set("head_dim", json!(head_dim));
    set("rms_norm_eps", json!(eps));
    set("rope_theta", json!(theta));
    set("rope_parameters", rope_parameters(gguf, "llama", theta, head_dim)?);
    set("vocab_size", json!(vocab));
    set("max_position_embeddings", json!(context));
    set("attention_bias", json!(gguf.tensor("blk.0.attn_q.bias").is_some()));
    set("mlp_bias", json!(gguf.tensor("blk.0.ffn_up.bias").is_some()));
    set("tie_word_embeddings", json!(gguf.tensor("output.weight").is_none()));
    Ok(config)
}

/// A finite positive float.
pub(super) fn float(gguf: &Gguf, key: &str) -> Option<f64> {
    gguf.get(key)?.as_f64().filter(|value| value.is_finite() && *value > 0.0)
}

pub(super) fn rope_parameters(gguf: &Gguf, architecture: &str, theta: f64, head_dim: u64) -> Result<Json> {
    let path = gguf.path();
    let scaling = gguf.get_str(&format!("{architecture}.rope.scaling.type")).unwrap_or("none");
    let factor = float(gguf, &format!("{architecture}.rope.scaling.factor"));
    let original = gguf.get(&format!("{architecture}.rope.scaling.original_context_length")).and_then(Value::as_u64);
    if let Some(tensor) = gguf.tensor(ROPE_FACTORS) {
        let stored: Vec<f32> = match tensor.kind.format() {
            Some(crate::Format::F32) => {
                gguf.bytes(tensor).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            _ => return Err(FormatError::unsupported(path, format!("`{ROPE_FACTORS}` in {}", tensor.kind.name))),
        };
        let known = llama3_parameters(&stored, theta, head_dim).or_else(|| divided_parameters(&stored, theta, head_dim));
        return known.ok_or_else(|| {
            FormatError::invalid(
                path,
                format!("`{ROPE_FACTORS}` is no positive divisor for each of {} frequencies", head_dim / 2),
            )
        });
    }
    let needs_factor =
        || factor.ok_or_else(|| FormatError::invalid(path, format!("`{architecture}.rope.scaling.factor` is missing")));
    match scaling {
        "none" => Ok(json!({ "rope_type": "default", "rope_theta": theta })),
        "linear" => Ok(json!({ "rope_type": "linear", "rope_theta": theta, "factor": needs_factor()? })),
        "yarn" => {
            let mut parameters = json!({ "rope_type": "yarn", "rope_theta": theta, "factor": needs_factor()? });
            if let Some(original) = original {
                parameters["original_max_position_embeddings"] = json!(original);
            }
            Ok(parameters)
        }
        other => Err(FormatError::unsupported(path, format!("rotary scaling `{other}`"))),
    }
}

/// Original context of all Llama 3.1 to 3.3 models.
const LLAMA3_CONTEXT: f64 = 8192.0;

/// Recognises the factors that Llama 3's scaling gives: only `factor` varies among released models (8 and 32).
fn llama3_parameters(stored: &[f32], theta: f64, head_dim: u64) -> Option<Json> {
    let factor = f64::from(stored.iter().copied().fold(0.0, f32::max));
    if stored.len() as u64 * 2 != head_dim || !(1.0..=1e6).contains(&factor) {
        return None;
    }
    let expected = llama3_factors(theta, head_dim, factor, 1.0, 4.0, LLAMA3_CONTEXT);
    let equal = stored.iter().zip(&expected).all(|(&a, &b)| (f64::from(a) - b).abs() <= 1e-3 * b);
    equal.then(|| {
        json!({
            "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": LLAMA3_CONTEXT as u64,
        })
    })
}

/// Divisors of any other making, as the scaling that lists them.
fn divided_parameters(stored: &[f32], theta: f64, head_dim: u64) -> Option<Json> {
    let fine = stored.len() as u64 * 2 == head_dim && stored.iter().all(|divisor| divisor.is_finite() && *divisor > 0.0);
    fine.then(|| {
        json!({
            "rope_type": "longrope", "rope_theta": theta, "short_factor": stored, "long_factor": stored, "attention_factor": 1.0,
            "original_max_position_embeddings": LLAMA3_CONTEXT as u64,
        })
    })
}

/// Divisor of each frequency under Llama 3's scaling.
fn llama3_factors(theta: f64, head_dim: u64, factor: f64, low: f64, high: f64, context: f64) -> Vec<f64> {
    (0..head_dim / 2)
        .map(|i| {
            let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
            if wavelength < context / high {
                1.0
            } else if wavelength > context / low {
                factor
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        })
        .collect()
}

/// Writes a llama model as GGUF.
///
/// `config` is in Hugging Face spelling; tensors carry Hugging Face names and row order. `extra` metadata (name,
/// tokenizer, chat template) is added to what the configuration gives and wins over it.
pub fn write(path: &Path, config: &Json, tensors: &[NamedTensor<'_>], extra: &[(String, Value)]) -> Result<()> {
    let heads =
        HeadCounts::of(config).ok_or_else(|| FormatError::refused(path, "the configuration has no `num_attention_heads`"))?;
    let mut metadata = metadata(path, config)?;
    for (key, value) in extra {
        match metadata.iter_mut().find(|(existing, _)| existing == key) {
            Some(entry) => entry.1 = value.clone(),
            None => metadata.push((key.clone(), value.clone())),
        }
    }
    let tied = config["tie_word_embeddings"].as_bool().unwrap_or(false);
    let mut stored = Vec::with_capacity(tensors.len() + 1);
    for NamedTensor { name, view } in tensors {
        if tied && name == "lm_head.weight" {
            continue;
        }
        let target = LLAMA
            .gguf_name(name)
            .ok_or_else(|| FormatError::refused(path, format!("`{name}` is no tensor of the llama architecture")))?;
        let kind = GgmlType::of(view.format)
            .ok_or_else(|| FormatError::refused(path, format!("`{name}` is {}, which GGUF cannot hold", view.format)))?;
        let rows = view.shape.first().copied().unwrap_or(0);
        let data = heads.reorder(path, name, rows, &view.data, Order::ToGguf)?;
        stored.push((target, view.shape.iter().rev().copied().collect(), kind, data));
    }
    if let Some(factors) = llama3_factors_of(config) {
        let data: Vec<u8> = factors.iter().flat_map(|&factor| (factor as f32).to_le_bytes()).collect();
        let kind = GgmlType::of(crate::Format::F32).expect("GGUF holds floats");
        stored.push((ROPE_FACTORS.into(), vec![factors.len()], kind, data.into()));
    }
    let sources: Vec<TensorSource<'_>> =
        stored.iter().map(|(name, dims, kind, data)| TensorSource { name, dims, kind: *kind, data }).collect();
    super::write(path, &metadata, &sources)
}

fn llama3_factors_of(config: &Json) -> Option<Vec<f64>> {
    let rope = &config["rope_parameters"];
    (rope["rope_type"].as_str()? == "llama3").then_some(())?;
    let number = |key: &str| rope[key].as_f64();
    Some(llama3_factors(
        number("rope_theta")?,
        head_dim(config)?,
        number("factor")?,
        number("low_freq_factor")?,
        number("high_freq_factor")?,
        number("original_max_position_embeddings")?,
    ))
}

fn head_dim(config: &Json) -> Option<u64> {
    config["head_dim"].as_u64().or_else(|| config["hidden_size"].as_u64()?.checked_div(config["num_attention_heads"].as_u64()?))
}

fn metadata(path: &Path, config: &Json) -> Result<Vec<(String, Value)>> {
    let missing = |key: &str| FormatError::refused(path, format!("the configuration has no usable `{key}`"));
    let integer =
        |key: &str| config[key].as_u64().and_then(|value| u32::try_from(value).ok()).map(Value::U32).ok_or_else(|| missing(key));
    if config["model_type"].as_str() != Some("llama") {
        return Err(FormatError::refused(path, "only the llama architecture is written as GGUF"));
    }
    let rope = &config["rope_parameters"];
    let theta = rope["rope_theta"].as_f64().or(config["rope_theta"].as_f64()).unwrap_or(10_000.0);
    let head_dim = head_dim(config).and_then(|dim| u32::try_from(dim).ok()).ok_or_else(|| missing("head_dim"))?;
    let kv_heads = if config["num_key_value_heads"].is_null() { "num_attention_heads" } else { "num_key_value_heads" };
    let mut out: Vec<(String, Value)> = Vec::new();
    let mut put = |key: &str, value: Value| out.push((key.to_owned(), value));
    put("general.architecture", "llama".into());
    put("general.type", "model".into());
    put("general.quantization_version", Value::U32(2));
    put("llama.vocab_size", integer("vocab_size")?);
    put("llama.context_length", integer("max_position_embeddings")?);
    put("llama.embedding_length", integer("hidden_size")?);
    put("llama.block_count", integer("num_hidden_layers")?);
    put("llama.feed_forward_length", integer("intermediate_size")?);
    put("llama.attention.head_count", integer("num_attention_heads")?);
    put("llama.attention.head_count_kv", integer(kv_heads)?);
    put("llama.attention.key_length", Value::U32(head_dim));
    put("llama.attention.value_length", Value::U32(head_dim));
    put("llama.rope.dimension_count", Value::U32(head_dim));
    put("llama.rope.freq_base", Value::F32(theta as f32));
    let eps = config["rms_norm_eps"].as_f64().ok_or_else(|| missing("rms_norm_eps"))?;
    put("llama.attention.layer_norm_rms_epsilon", Value::F32(eps as f32));
    match rope["rope_type"].as_str().unwrap_or("default") {
        "default" | "llama3" => {}
        kind @ ("linear" | "yarn") => {
            put("llama.rope.scaling.type", kind.into());
            let factor = rope["factor"].as_f64().ok_or_else(|| missing("rope_parameters.factor"))?;
            put("llama.rope.scaling.factor", Value::F32(factor as f32));
            if let Some(original) = rope["original_max_position_embeddings"].as_u64() {
                put("llama.rope.scaling.original_context_length", Value::U32(original as u32));
            }
        }
        other => return Err(FormatError::refused(path, format!("rotary scaling `{other}` has no GGUF spelling"))),
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_return_to_their_place() {
        // Two heads of four rows, one byte a row: Hugging Face halves become neighbouring pairs.
        let hf: Vec<u8> = (0..8).collect();
        let gguf = permute(&hf, 8, 2, Order::ToGguf).unwrap();
        assert_eq!(gguf, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(permute(&gguf, 8, 2, Order::ToHf).unwrap(), hf);
        assert_eq!(permute(&hf, 8, 0, Order::ToHf), None);
        assert_eq!(permute(&hf, 8, 8, Order::ToHf), None);
    }

    #[test]
    fn llama3_factors_are_recognised() {
        let factors: Vec<f32> = llama3_factors(500_000.0, 128, 8.0, 1.0, 4.0, 8192.0).iter().map(|&f| f as f32).collect();
        let parameters = llama3_parameters(&factors, 500_000.0, 128).unwrap();
        assert_eq!(parameters["factor"], 8.0);
        let mut other = factors.clone();
        other[40] *= 1.1;
        assert!(llama3_parameters(&other, 500_000.0, 128).is_none());
    }
}
