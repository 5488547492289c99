//! `config.json` from a GGUF file's metadata, in the spelling of Hugging Face.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::architecture::Architecture;
use super::llama::{self, float};
use super::{Gguf, TensorInfo, Value};
use crate::{FormatError, Result};

/// Per-frequency factors of LongRoPE, beyond the original context and within it.
const LONG_FACTORS: &str = "rope_factors_long.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// Metadata under an architecture's keys.
pub(super) struct Metadata<'a> {
    gguf: &'a Gguf,
    path: &'a Path,
    architecture: &'static str,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(gguf: &'a Gguf, architecture: &'static str) -> Metadata<'a> {
        Metadata { gguf, path: gguf.path(), architecture }
    }

    fn missing(&self, name: &str) -> FormatError {
        FormatError::invalid(self.path, format!("metadata `{}.{name}` is missing or out of range", self.architecture))
    }

    fn key(&self, name: &str) -> Option<&'a Value> {
        self.gguf.get(&format!("{}.{name}", self.architecture))
    }

    pub(super) fn optional(&self, name: &str) -> Option<u64> {
        self.key(name).and_then(Value::as_u64)
    }

    /// At least 1.
    pub(super) fn integer(&self, name: &str) -> Result<u64> {
        self.optional(name).filter(|v| (1..=u64::from(u32::MAX)).contains(v)).ok_or_else(|| self.missing(name))
    }

    fn float(&self, name: &str) -> Option<f64> {
        float(self.gguf, &format!("{}.{name}", self.architecture))
    }

    fn eps(&self, name: &str) -> Result<f64> {
        self.float(name).ok_or_else(|| self.missing(name))
    }

    fn flag(&self, name: &str) -> Option<bool> {
        match self.key(name) {
            Some(Value::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    fn tensor(&self, name: &str) -> Option<&'a TensorInfo> {
        self.gguf.tensor(name)
    }

    fn has(&self, name: &str) -> bool {
        self.tensor(name).is_some()
    }

    /// Rows of a table.
    fn rows(&self, name: &str) -> Result<usize> {
        let table = self.tensor(name).ok_or_else(|| FormatError::missing(self.path, name))?;
        Ok(table.shape().first().copied().unwrap_or(0))
    }

    /// A small tensor of f32.
    fn floats(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.tensor(name) else { return Ok(None) };
        match tensor.kind.format() {
            Some(crate::Format::F32) => {
                let bytes = self.gguf.bytes(tensor).chunks_exact(4);
                Ok(Some(bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
            }
            _ => Err(FormatError::unsupported(self.path, format!("`{name}` in {}", tensor.kind.name))),
        }
    }

    /// Numbers of query heads and of key heads.
    pub(super) fn heads(&self) -> Result<(u64, u64)> {
        let heads = self.integer("attention.head_count")?;
        let keys = match self.key("attention.head_count_kv") {
            Some(_) => self.integer("attention.head_count_kv")?,
            None => heads,
        };
        if !heads.is_multiple_of(keys) {
            return Err(FormatError::invalid(self.path, format!("{keys} key/value heads do not divide {heads} heads")));
        }
        Ok((heads, keys))
    }
}

/// Synthesises `config.json` from metadata.
pub(crate) fn config(gguf: &Gguf, architecture: &Architecture) -> Result<Json> {
    let meta = Metadata::new(gguf, architecture.name);
    let mut config = match architecture.model_type {
        "llama" | "mixtral" => llama::config(gguf)?,
        "gpt2" => gpt2(&meta)?,
        "chatglm" => chatglm(&meta)?,
        "bert" => bert(&meta)?,
        other => decoder(&meta, other)?,
    };
    config.insert("architectures".into(), json!([architecture.class]));
    config.insert("model_type".into(), json!(architecture.model_type));
    if architecture.model_type == "mixtral" {
        config.insert("num_local_experts".into(), json!(meta.integer("expert_count")?));
        config.insert("num_experts_per_tok".into(), json!(meta.integer("expert_used_count")?));
    }
    for (hf, ggml) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        if let Some(id) = gguf.get(&format!("tokenizer.ggml.{ggml}_token_id")).and_then(Value::as_u64) {
            config.insert(hf.into(), json!(id));
        }
    }
    Ok(Json::Object(config))
}

/// Decoders that Hugging Face configures with the names of llama.
fn decoder(meta: &Metadata<'_>, model_type: &str) -> Result<Map<String, Json>> {
    let (hidden, layers) = (meta.integer("embedding_length")?, meta.integer("block_count")?);
    let (heads, kv_heads) = meta.heads()?;
    let head_dim = meta.optional("attention.key_length").unwrap_or(hidden / heads);
    let theta = meta.float("rope.freq_base").unwrap_or(10_000.0);
    let mut config = Map::new();
    let mut set = |key: &str, value: Json| config.insert(key.to_owned(), value);
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(meta.integer("feed_forward_length")?));
    set("num_hidden_layers", json!(layers));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(kv_heads));
    set("head_dim", json!(head_dim));
    match model_type {
        "stablelm" | "gpt_neox" => set("layer_norm_eps", json!(meta.eps("attention.layer_norm_epsilon")?)),
        _ => set("rms_norm_eps", json!(meta.eps("attention.layer_norm_rms_epsilon")?)),
    };
    set("vocab_size", json!(meta.rows("token_embd.weight")?));
    set("max_position_embeddings", json!(meta.integer("context_length")?));
    set("tie_word_embeddings", json!(!meta.has("output.weight")));
    let turned = meta.optional("rope.dimension_count").unwrap_or(head_dim);
    let partial = turned as f64 / head_dim as f64;
    let mut rope = match model_type {
        "phi3" if meta.has(LONG_FACTORS) => longrope(meta, theta)?,
        // Over the part of a head that turns.
        "deepseek_v2" | "deepseek_v3" => latent_rope(meta, theta, turned)?,
        _ => llama::rope_parameters(meta.gguf, meta.architecture, theta, head_dim)?,
    };
    match model_type {
        "qwen2_moe" | "qwen3_moe" => {
            set("num_experts", json!(meta.integer("expert_count")?));
            set("num_experts_per_tok", json!(meta.integer("expert_used_count")?));
            let experts = meta.tensor("blk.0.ffn_up_exps.weight").and_then(|t| t.shape().get(1).copied());
            let width = meta.optional("expert_feed_forward_length").or(experts.map(|d| d as u64));
            set("moe_intermediate_size", json!(width.ok_or_else(|| meta.missing("expert_feed_forward_length"))?));
            set("norm_topk_prob", json!(model_type == "qwen3_moe"));
            if model_type == "qwen2_moe" {
                let shared = meta.tensor("blk.0.ffn_up_shexp.weight").and_then(|t| t.shape().first().copied());
                let width = meta.optional("expert_shared_feed_forward_length").or(shared.map(|d| d as u64));
                set(
                    "shared_expert_intermediate_size",
                    json!(width.ok_or_else(|| meta.missing("expert_shared_feed_forward_length"))?),
                );
            }
        }
        "gemma2" | "gemma3_text" => {
            // What released models divide scores by: the size of a head, but in the 27B models the width per head.
            let largest = matches!((model_type, layers), ("gemma2", 46) | ("gemma3_text", 62));
            set("query_pre_attn_scalar", json!(if largest { hidden / heads } else { head_dim }));
            set("sliding_window", json!(meta.integer("attention.sliding_window")?));
            set("attn_logit_softcapping", json!(meta.float("attn_logit_softcapping")));
            set("final_logit_softcapping", json!(meta.float("final_logit_softcapping")));
            if model_type == "gemma3_text" {
                let local = json!({ "rope_type": "default", "rope_theta": 10_000.0 });
                rope = json!({ "full_attention": rope, "sliding_attention": local });
            }
        }
        "phi3" => {
            set("partial_rotary_factor", json!(partial));
            rope["partial_rotary_factor"] = json!(partial);
            set("sliding_window", json!(meta.optional("attention.sliding_window").filter(|&w| w > 0)));
            if let Some(original) = meta.optional("rope.scaling.original_context_length") {
                set("original_max_position_embeddings", json!(original));
            }
        }
        "glm" | "glm4" | "stablelm" | "gpt_neox" => {
            set("partial_rotary_factor", json!(partial));
            set("rotary_pct", json!(partial));
            rope["partial_rotary_factor"] = json!(partial);
            let fused = meta.has("blk.0.attn_qkv.bias");
            set("attention_bias", json!(fused || meta.has("blk.0.attn_q.bias")));
            set("use_qkv_bias", json!(meta.has("blk.0.attn_q.bias")));
            set("qk_layernorm", json!(meta.has("blk.0.attn_q_norm.weight")));
            set("use_parallel_residual", json!(meta.flag("use_parallel_residual").unwrap_or(model_type == "gpt_neox")));
        }
        "deepseek_v2" | "deepseek_v3" => deepseek(meta, &mut config, model_type == "deepseek_v3")?,
        _ => {}
    }
    config.insert("rope_parameters".into(), rope);
    Ok(config)
}

/// Multi-head latent attention, and experts of which some are shared.
fn deepseek(meta: &Metadata<'_>, config: &mut Map<String, Json>, v3: bool) -> Result<()> {
    let turned = meta.integer("rope.dimension_count")?;
    // Files from before 2025 keep the sizes of a whole head under the plain names.
    let size = |new: &str, old: &str| meta.optional(new).map_or_else(|| meta.integer(old), Ok);
    let head = size("attention.key_length_mla", "attention.key_length")?;
    if head <= turned {
        return Err(FormatError::invalid(meta.path, format!("{turned} of the {head} dimensions of a head turn; some must not")));
    }
    let mut set = |key: &str, value: Json| config.insert(key.to_owned(), value);
    let heads = meta.integer("attention.head_count")?;
    // Latent keys and values count as one head; Hugging Face counts what they are expanded to.
    set("num_key_value_heads", json!(heads));
    set("head_dim", json!(turned));
    set("q_lora_rank", json!(meta.optional("attention.q_lora_rank").filter(|&rank| rank > 0)));
    set("kv_lora_rank", json!(meta.integer("attention.kv_lora_rank")?));
    set("qk_rope_head_dim", json!(turned));
    set("qk_nope_head_dim", json!(head - turned));
    set("v_head_dim", json!(size("attention.value_length_mla", "attention.value_length")?));
    set("first_k_dense_replace", json!(meta.optional("leading_dense_block_count").unwrap_or(0)));
    set("n_routed_experts", json!(meta.integer("expert_count")?));
    set("n_shared_experts", json!(meta.integer("expert_shared_count")?));
    set("num_experts_per_tok", json!(meta.integer("expert_used_count")?));
    set("moe_intermediate_size", json!(meta.integer("expert_feed_forward_length")?));
    // 8 groups, of which 4 count, are what version 3 has where its files do not say.
    let released = v3 && meta.optional("expert_count") == Some(256);
    let groups = meta.optional("expert_group_count").filter(|&n| n > 0).or(released.then_some(8)).unwrap_or(1);
    let used = meta.optional("expert_group_used_count").filter(|&n| n > 0).or(released.then_some(4)).unwrap_or(1);
    set("n_group", json!(groups));
    set("topk_group", json!(used));
    let method = if v3 {
        "noaux_tc"
    } else if groups > 1 {
        "group_limited_greedy"
    } else {
        "greedy"
    };
    set("topk_method", json!(method));
    set("norm_topk_prob", json!(meta.flag("expert_weights_norm").unwrap_or(false)));
    set("routed_scaling_factor", json!(meta.float("expert_weights_scale").unwrap_or(1.0)));
    set("attention_bias", json!(meta.has("blk.0.attn_output.bias")));
    Ok(())
}

/// YaRN as DeepSeek has it, whose attention factor depends on a multiplier that GGUF keeps as a tenth.
fn latent_rope(meta: &Metadata<'_>, theta: f64, turned: u64) -> Result<Json> {
    let mut rope = llama::rope_parameters(meta.gguf, meta.architecture, theta, turned)?;
    if rope["rope_type"] == "yarn" {
        // One number for both, as in every released model.
        let all = meta.float("rope.scaling.yarn_log_multiplier").map_or(1.0, |tenth| tenth * 10.0);
        (rope["mscale"], rope["mscale_all_dim"]) = (json!(all), json!(all));
        for (hf, ggml, default) in [("beta_fast", "yarn_beta_fast", 32.0), ("beta_slow", "yarn_beta_slow", 1.0)] {
            rope[hf] = json!(meta.float(&format!("rope.scaling.{ggml}")).unwrap_or(default));
        }
    }
    Ok(rope)
}

/// Phi's LongRoPE.
fn longrope(meta: &Metadata<'_>, theta: f64) -> Result<Json> {
    let factors = |name: &str| meta.floats(name)?.ok_or_else(|| FormatError::missing(meta.path, name));
    let mut rope = json!({
        "rope_type": "longrope", "rope_theta": theta, "long_factor": factors(LONG_FACTORS)?, "short_factor": factors(SHORT_FACTORS)?,
        "original_max_position_embeddings": meta.integer("rope.scaling.original_context_length")?,
    });
    if let Some(factor) = meta.float("rope.scaling.attn_factor") {
        rope["attention_factor"] = json!(factor);
    }
    Ok(rope)
}

/// Sizes that every model has, under its names for width, inner width, layers and heads.
fn sizes(meta: &Metadata<'_>, names: [&str; 4]) -> Result<Map<String, Json>> {
    let keys = ["embedding_length", "feed_forward_length", "block_count", "attention.head_count"];
    names.into_iter().zip(keys).map(|(name, key)| Ok((name.to_string(), json!(meta.integer(key)?)))).collect()
}

/// `sizes` and the keys of `others`, an object.
fn with(mut sizes: Map<String, Json>, others: Json) -> Map<String, Json> {
    if let Json::Object(others) = others {
        sizes.extend(others);
    }
    sizes
}

fn gpt2(meta: &Metadata<'_>) -> Result<Map<String, Json>> {
    let sizes = sizes(meta, ["n_embd", "n_inner", "n_layer", "n_head"])?;
    let others = json!({
        "n_positions": meta.rows("position_embd.weight")?,
        "layer_norm_epsilon": meta.eps("attention.layer_norm_epsilon")?,
        "activation_function": "gelu_new",
        "vocab_size": meta.rows("token_embd.weight")?,
        "tie_word_embeddings": !meta.has("output.weight"),
    });
    Ok(with(sizes, others))
}

fn chatglm(meta: &Metadata<'_>) -> Result<Map<String, Json>> {
    let sizes = sizes(meta, ["hidden_size", "ffn_hidden_size", "num_layers", "num_attention_heads"])?;
    let (heads, groups) = meta.heads()?;
    let head_dim = meta.integer("embedding_length")? / heads;
    let others = json!({
        "kv_channels": meta.optional("attention.key_length").unwrap_or(head_dim),
        "multi_query_attention": true,
        "multi_query_group_num": groups,
        "layernorm_epsilon": meta.eps("attention.layer_norm_rms_epsilon")?,
        "rmsnorm": true,
        "add_qkv_bias": meta.has("blk.0.attn_qkv.bias"),
        "add_bias_linear": meta.has("blk.0.attn_output.bias"),
        "seq_length": meta.integer("context_length")?,
        "rope_ratio": meta.float("rope.freq_base").unwrap_or(10_000.0) / 10_000.0,
        "padded_vocab_size": meta.rows("token_embd.weight")?,
        "tie_word_embeddings": false,
    });
    Ok(with(sizes, others))
}

fn bert(meta: &Metadata<'_>) -> Result<Map<String, Json>> {
    let sizes = sizes(meta, ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"])?;
    let others = json!({
        "layer_norm_eps": meta.eps("attention.layer_norm_epsilon")?,
        "hidden_act": "gelu",
        "max_position_embeddings": meta.rows("position_embd.weight")?,
        "type_vocab_size": meta.rows("token_types.weight")?,
        "vocab_size": meta.rows("token_embd.weight")?,
    });
    Ok(with(sizes, others))
}
