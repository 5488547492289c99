//! GGUF architectures in the terms of Hugging Face: a table of names, and configurations from metadata.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::llama::{self, float};
use super::{Gguf, Value};
use crate::{FormatError, Result};

/// One `general.architecture`.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// Its name in GGUF, with which its metadata keys begin.
    name: &'static str,
    /// Its `model_type`.
    model_type: &'static str,
    /// Its class in `architectures`.
    class: &'static str,
    /// Parts of a block: GGUF name, Hugging Face name.
    block: &'static [&'static [(&'static str, &'static str)]],
    /// Rows of queries and keys are stored in pairs; see [`llama`].
    pub(crate) paired_rows: bool,
    /// Norms are stored with the 1 added that Hugging Face adds when it computes.
    pub(crate) norms_plus_one: bool,
}

/// Tensors outside of blocks.
const TOP: [(&str, &str); 3] = [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
const ATTENTION: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
];
const FEED_FORWARD: &[(&str, &str)] = &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];
const FEED_FORWARD_NORM: &[(&str, &str)] = &[("ffn_norm", "post_attention_layernorm")];
const HEAD_NORMS: &[(&str, &str)] = &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];
const FOUR_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const FUSED: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const PLAIN: Architecture = Architecture {
    name: "",
    model_type: "",
    class: "",
    block: &[ATTENTION, FEED_FORWARD_NORM, FEED_FORWARD],
    paired_rows: false,
    norms_plus_one: false,
};

/// Llama, and Mistral, which GGUF calls llama.
pub(crate) const LLAMA: Architecture =
    Architecture { name: "llama", model_type: "llama", class: "LlamaForCausalLM", paired_rows: true, ..PLAIN };

const TABLE: [Architecture; 7] = [
    LLAMA,
    Architecture { name: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", ..PLAIN },
    Architecture {
        name: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        block: &[ATTENTION, HEAD_NORMS, FEED_FORWARD_NORM, FEED_FORWARD],
        ..PLAIN
    },
    Architecture { name: "gemma", model_type: "gemma", class: "GemmaForCausalLM", norms_plus_one: true, ..PLAIN },
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        block: &[ATTENTION, FOUR_NORMS, FEED_FORWARD],
        norms_plus_one: true,
        ..PLAIN
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        block: &[ATTENTION, HEAD_NORMS, FOUR_NORMS, FEED_FORWARD],
        norms_plus_one: true,
        ..PLAIN
    },
    Architecture { name: "phi3", model_type: "phi3", class: "Phi3ForCausalLM", block: &[FUSED, FEED_FORWARD_NORM], ..PLAIN },
];

impl Architecture {
    /// That of a file.
    pub(crate) fn of(gguf: &Gguf) -> Result<&'static Architecture> {
        static ALL: [Architecture; TABLE.len()] = TABLE;
        let path = gguf.path();
        let name = gguf
            .get_str("general.architecture")
            .ok_or_else(|| FormatError::invalid(path, "metadata `general.architecture` is missing"))?;
        ALL.iter().find(|a| a.name == name).ok_or_else(|| {
            let known: Vec<&str> = ALL.iter().map(|a| a.name).collect();
            let reason =
                format!("GGUF architecture `{name}`; read from GGUF are {}; use the Hugging Face folder", known.join(", "));
            FormatError::unsupported(path, reason)
        })
    }

    fn parts(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        self.block.iter().flat_map(|part| part.iter())
    }

    /// The Hugging Face name of a GGUF tensor; `None` for what is no weight of this architecture.
    pub(crate) fn hf_name(&self, name: &str) -> Option<String> {
        let (stem, suffix) = named(name)?;
        if let Some((_, part)) = TOP.iter().find(|(gguf, _)| *gguf == stem) {
            return Some(format!("{part}.{suffix}"));
        }
        let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let (_, part) = self.parts().find(|(gguf, _)| *gguf == part)?;
        Some(format!("model.layers.{layer}.{part}.{suffix}"))
    }

    /// The GGUF name of a Hugging Face tensor.
    pub(crate) fn gguf_name(&self, name: &str) -> Option<String> {
        let (stem, suffix) = named(name)?;
        if let Some((part, _)) = TOP.iter().find(|(_, hf)| *hf == stem) {
            return Some(format!("{part}.{suffix}"));
        }
        let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let (part, _) = self.parts().find(|(_, hf)| *hf == part)?;
        Some(format!("blk.{layer}.{part}.{suffix}"))
    }

    /// Synthesises `config.json` from metadata.
    pub(crate) fn config(&self, gguf: &Gguf) -> Result<Json> {
        if self.name == LLAMA.name {
            return llama::config(gguf);
        }
        let meta = Metadata { gguf, path: gguf.path(), architecture: self.name };
        let (hidden, heads, layers) =
            (meta.integer("embedding_length")?, meta.integer("attention.head_count")?, meta.integer("block_count")?);
        let head_dim = meta.optional("attention.key_length").unwrap_or(hidden / heads);
        let theta = meta.float("rope.freq_base").unwrap_or(10_000.0);
        let embedding = gguf.tensor("token_embd.weight").ok_or_else(|| FormatError::missing(meta.path, "token_embd.weight"))?;
        let eps =
            meta.float("attention.layer_norm_rms_epsilon").ok_or_else(|| meta.missing("attention.layer_norm_rms_epsilon"))?;
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| config.insert(key.to_owned(), value);
        set("architectures", json!([self.class]));
        set("model_type", json!(self.model_type));
        set("hidden_size", json!(hidden));
        set("intermediate_size", json!(meta.integer("feed_forward_length")?));
        set("num_hidden_layers", json!(layers));
        set("num_attention_heads", json!(heads));
        set("num_key_value_heads", json!(meta.optional("attention.head_count_kv").unwrap_or(heads)));
        set("head_dim", json!(head_dim));
        set("rms_norm_eps", json!(eps));
        set("vocab_size", json!(embedding.dims.get(1)));
        set("max_position_embeddings", json!(meta.integer("context_length")?));
        set("tie_word_embeddings", json!(gguf.tensor("output.weight").is_none()));
        for (hf, ggml) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            if let Some(id) = gguf.get(&format!("tokenizer.ggml.{ggml}_token_id")).and_then(Value::as_u64) {
                set(hf, json!(id));
            }
        }
        let rope = llama::rope_parameters(gguf, self.name, theta, head_dim)?;
        match self.name {
            "gemma2" | "gemma3" => {
                // What released models divide scores by: the size of a head, but in the 27B models the width per head.
                let largest = matches!((self.name, layers), ("gemma2", 46) | ("gemma3", 62));
                set("query_pre_attn_scalar", json!(if largest { hidden / heads } else { head_dim }));
                set("sliding_window", json!(meta.integer("attention.sliding_window")?));
                set("attn_logit_softcapping", json!(meta.float("attn_logit_softcapping")));
                set("final_logit_softcapping", json!(meta.float("final_logit_softcapping")));
                if self.name == "gemma3" {
                    let local = json!({ "rope_type": "default", "rope_theta": 10_000.0 });
                    set("rope_parameters", json!({ "full_attention": rope, "sliding_attention": local }));
                } else {
                    set("rope_parameters", rope);
                }
            }
            "phi3" => {
                for factors in ["rope_factors_long.weight", "rope_factors_short.weight"] {
                    if gguf.tensor(factors).is_some() {
                        return Err(FormatError::unsupported(meta.path, "LongRoPE in phi3 GGUF; use the Hugging Face folder"));
                    }
                }
                let turned = meta.optional("rope.dimension_count").unwrap_or(head_dim);
                set("partial_rotary_factor", json!(turned as f64 / head_dim as f64));
                set("sliding_window", json!(meta.optional("attention.sliding_window").filter(|&w| w > 0)));
                set("rope_parameters", rope);
            }
            _ => {
                set("rope_parameters", rope);
            }
        }
        Ok(Json::Object(config))
    }
}

/// A tensor's name without its last part, and that part.
fn named(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))
}

/// Metadata under an architecture's keys.
struct Metadata<'a> {
    gguf: &'a Gguf,
    path: &'a Path,
    architecture: &'static str,
}

impl Metadata<'_> {
    fn missing(&self, name: &str) -> FormatError {
        FormatError::invalid(self.path, format!("metadata `{}.{name}` is missing or out of range", self.architecture))
    }

    fn optional(&self, name: &str) -> Option<u64> {
        self.gguf.get(&format!("{}.{name}", self.architecture)).and_then(Value::as_u64)
    }

    /// At least 1.
    fn integer(&self, name: &str) -> Result<u64> {
        self.optional(name).filter(|v| (1..=u64::from(u32::MAX)).contains(v)).ok_or_else(|| self.missing(name))
    }

    fn float(&self, name: &str) -> Option<f64> {
        float(self.gguf, &format!("{}.{name}", self.architecture))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_both_ways() {
        for architecture in &TABLE {
            for part in
                architecture.parts().map(|(_, hf)| format!("model.layers.17.{hf}.weight")).chain(["lm_head.weight".into()])
            {
                let stored = architecture.gguf_name(&part).unwrap();
                assert_eq!(architecture.hf_name(&stored).unwrap(), part, "{}", architecture.name);
            }
        }
        for bad in ["blk.x.attn_q.weight", "blk.1.attn_z.weight", "output", "blk..attn_q.weight", ""] {
            assert_eq!(LLAMA.hf_name(bad), None, "{bad}");
        }
    }
}
