//! GGUF architectures in the terms of Hugging Face: tables of names.
//!
//! A table pairs the parts of names. On the GGUF side `+` joins tensors whose rows stand one after the other in one Hugging Face tensor; on
//! the Hugging Face side `{}` is the number of a matrix in a GGUF stack. Where a file may have a tensor in several forms, each has a
//! line, the newest first.

use super::{Gguf, TensorInfo, Value};
use crate::{FormatError, Result};

/// Parts of names: GGUF, Hugging Face.
type Pairs = &'static [(&'static str, &'static str)];

/// How the rows of some tensors are ordered in GGUF. Whole rows move, so quantized blocks stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As in Hugging Face.
    Same,
    /// Rotary pairs of queries and keys are neighbours; see [`super::llama`].
    Pairs,
    /// Fused queries, keys and values one after the other, which Hugging Face has head by head.
    Fused,
}

/// One `general.architecture`.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// Its name in GGUF, with which its metadata keys begin.
    pub(super) name: &'static str,
    /// Its `model_type`.
    pub(super) model_type: &'static str,
    /// Its class in `architectures`.
    pub(super) class: &'static str,
    /// Tensors outside of blocks.
    top: Pairs,
    /// What a block's names begin with in Hugging Face.
    layers: &'static str,
    /// Parts of a block.
    block: &'static [Pairs],
    pub(crate) rows: RowOrder,
    /// Norms are stored with the 1 added that Hugging Face adds when it computes.
    pub(crate) norms_plus_one: bool,
    /// Matrices of blocks are `[in, out]` in Hugging Face and `[out, in]` here.
    pub(crate) turned: bool,
}

/// Where a Hugging Face tensor is.
#[derive(Debug)]
pub(crate) enum Stored<'a> {
    /// A tensor of its own.
    Whole(&'a TensorInfo),
    /// A matrix of a stack, and the names that the stack's matrices have.
    Slice { stack: &'a TensorInfo, index: usize },
    /// The rows of several, one after the other.
    Joined(Vec<&'a TensorInfo>),
    /// The key and value parts of MLA's second projection, `[heads, latent, key]` and `[heads, value, latent]`.
    Latent { keys: &'a TensorInfo, values: &'a TensorInfo },
}

impl<'a> Stored<'a> {
    /// The file's tensors that hold it.
    pub(crate) fn infos(&self) -> Vec<&'a TensorInfo> {
        match self {
            Stored::Whole(info) | Stored::Slice { stack: info, .. } => vec![info],
            Stored::Joined(infos) => infos.clone(),
            Stored::Latent { keys, values } => vec![keys, values],
        }
    }
}

const TOP: Pairs = &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
const ATTENTION: Pairs = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
];
const FEED_FORWARD: Pairs = &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];
const FEED_FORWARD_NORM: Pairs = &[("ffn_norm", "post_attention_layernorm")];
const HEAD_NORMS: Pairs = &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];
const FOUR_NORMS: Pairs = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const FUSED: Pairs = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
/// Experts in stacks.
const EXPERTS: Pairs = &[
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.{}.gate_proj"),
    ("ffn_up_exps", "mlp.experts.{}.up_proj"),
    ("ffn_down_exps", "mlp.experts.{}.down_proj"),
];
const SHARED_EXPERT: Pairs = &[
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];
/// Mixtral's experts; files of 2023 have a tensor for each.
const MIXTRAL_EXPERTS: Pairs = &[
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    ("ffn_gate_exps", "block_sparse_moe.experts.{}.w1"),
    ("ffn_down_exps", "block_sparse_moe.experts.{}.w2"),
    ("ffn_up_exps", "block_sparse_moe.experts.{}.w3"),
    ("ffn_gate.{}", "block_sparse_moe.experts.{}.w1"),
    ("ffn_down.{}", "block_sparse_moe.experts.{}.w2"),
    ("ffn_up.{}", "block_sparse_moe.experts.{}.w3"),
];
const LATENT_ATTENTION: Pairs = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    (LATENT, "self_attn.kv_b_proj"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];
/// The two halves of MLA's second projection, which are joined head by head.
const LATENT: &str = "attn_k_b+attn_v_b";
const GLM4: Pairs = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
const GLM4_NORMS: Pairs = &[("post_attention_norm", "post_self_attn_layernorm"), ("post_ffw_norm", "post_mlp_layernorm")];
const CHATGLM_TOP: Pairs = &[
    ("token_embd", "transformer.embedding.word_embeddings"),
    ("output_norm", "transformer.encoder.final_layernorm"),
    ("output", "transformer.output_layer"),
];
const CHATGLM: Pairs = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attention.query_key_value"),
    ("attn_output", "self_attention.dense"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];
const BAICHUAN: Pairs =
    &[("attn_norm", "input_layernorm"), ("attn_q+attn_k+attn_v", "self_attn.W_pack"), ("attn_output", "self_attn.o_proj")];
const STABLELM_HEAD_NORMS: Pairs =
    &[("attn_q_norm", "self_attn.q_layernorm.norms.{}"), ("attn_k_norm", "self_attn.k_layernorm.norms.{}")];
const GPT_NEOX_TOP: Pairs =
    &[("token_embd", "gpt_neox.embed_in"), ("output_norm", "gpt_neox.final_layer_norm"), ("output", "embed_out")];
const GPT_NEOX: Pairs = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "attention.query_key_value"),
    ("attn_output", "attention.dense"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];
const GPT2_TOP: Pairs = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
];
const GPT2: Pairs = &[
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];
const BERT_TOP: Pairs = &[
    ("token_embd", "embeddings.word_embeddings"),
    ("position_embd", "embeddings.position_embeddings"),
    ("token_types", "embeddings.token_type_embeddings"),
    ("token_embd_norm", "embeddings.LayerNorm"),
];
const BERT: Pairs = &[
    ("attn_q", "attention.self.query"),
    ("attn_k", "attention.self.key"),
    ("attn_v", "attention.self.value"),
    ("attn_output", "attention.output.dense"),
    ("attn_output_norm", "attention.output.LayerNorm"),
    ("ffn_up", "intermediate.dense"),
    ("ffn_down", "output.dense"),
    ("layer_output_norm", "output.LayerNorm"),
];

const PLAIN: Architecture = Architecture {
    name: "",
    model_type: "",
    class: "",
    top: TOP,
    layers: "model.layers.",
    block: &[ATTENTION, FEED_FORWARD_NORM, FEED_FORWARD],
    rows: RowOrder::Same,
    norms_plus_one: false,
    turned: false,
};

/// Llama, and Mistral, which GGUF calls llama.
pub(crate) const LLAMA: Architecture =
    Architecture { name: "llama", model_type: "llama", class: "LlamaForCausalLM", rows: RowOrder::Pairs, ..PLAIN };

/// Those of one name in GGUF are told apart by [`Architecture::of`].
static TABLE: [Architecture; 19] = [
    LLAMA,
    Architecture {
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        block: &[ATTENTION, FEED_FORWARD_NORM, MIXTRAL_EXPERTS],
        ..LLAMA
    },
    Architecture { name: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", ..PLAIN },
    Architecture {
        name: "qwen2moe",
        model_type: "qwen2_moe",
        class: "Qwen2MoeForCausalLM",
        block: &[ATTENTION, FEED_FORWARD_NORM, FEED_FORWARD, EXPERTS, SHARED_EXPERT],
        ..PLAIN
    },
    Architecture {
        name: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        block: &[ATTENTION, HEAD_NORMS, FEED_FORWARD_NORM, FEED_FORWARD],
        ..PLAIN
    },
    Architecture {
        name: "qwen3moe",
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        block: &[ATTENTION, HEAD_NORMS, FEED_FORWARD_NORM, FEED_FORWARD, EXPERTS],
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
    DEEPSEEK,
    Architecture { model_type: "deepseek_v3", class: "DeepseekV3ForCausalLM", ..DEEPSEEK },
    Architecture {
        name: "glm4",
        model_type: "glm4",
        class: "Glm4ForCausalLM",
        block: &[GLM4, FEED_FORWARD_NORM, GLM4_NORMS],
        ..PLAIN
    },
    Architecture {
        name: "chatglm",
        model_type: "chatglm",
        class: "ChatGLMModel",
        top: CHATGLM_TOP,
        layers: "transformer.encoder.layers.",
        block: &[CHATGLM],
        ..PLAIN
    },
    Architecture { name: "chatglm", model_type: "glm", class: "GlmForCausalLM", block: &[GLM4, FEED_FORWARD_NORM], ..PLAIN },
    Architecture {
        name: "baichuan",
        model_type: "baichuan",
        class: "BaichuanForCausalLM",
        block: &[BAICHUAN, FEED_FORWARD_NORM, FEED_FORWARD],
        rows: RowOrder::Pairs,
        ..PLAIN
    },
    Architecture {
        name: "stablelm",
        model_type: "stablelm",
        class: "StableLmForCausalLM",
        block: &[ATTENTION, STABLELM_HEAD_NORMS, FEED_FORWARD_NORM, FEED_FORWARD],
        ..PLAIN
    },
    Architecture {
        name: "gptneox",
        model_type: "gpt_neox",
        class: "GPTNeoXForCausalLM",
        top: GPT_NEOX_TOP,
        layers: "gpt_neox.layers.",
        block: &[GPT_NEOX],
        rows: RowOrder::Fused,
        ..PLAIN
    },
    GPT2_MODEL,
];

const DEEPSEEK: Architecture = Architecture {
    name: "deepseek2",
    model_type: "deepseek_v2",
    class: "DeepseekV2ForCausalLM",
    block: &[LATENT_ATTENTION, FEED_FORWARD_NORM, FEED_FORWARD, EXPERTS],
    ..PLAIN
};

const GPT2_MODEL: Architecture = Architecture {
    name: "gpt2",
    model_type: "gpt2",
    class: "GPT2LMHeadModel",
    top: GPT2_TOP,
    layers: "transformer.h.",
    block: &[GPT2],
    turned: true,
    ..PLAIN
};

static BERT_MODEL: Architecture = Architecture {
    name: "bert",
    model_type: "bert",
    class: "BertModel",
    top: BERT_TOP,
    layers: "encoder.layer.",
    block: &[BERT],
    ..PLAIN
};

impl Architecture {
    fn all() -> impl Iterator<Item = &'static Architecture> {
        TABLE.iter().chain([&BERT_MODEL])
    }

    /// That of a file.
    pub(crate) fn of(gguf: &Gguf) -> Result<&'static Architecture> {
        let path = gguf.path();
        let name = gguf
            .get_str("general.architecture")
            .ok_or_else(|| FormatError::invalid(path, "metadata `general.architecture` is missing"))?;
        let number = |key: &str| gguf.get(&format!("{name}.{key}")).and_then(Value::as_u64);
        let any = |suffix: &str| gguf.tensors().iter().any(|tensor| tensor.name.ends_with(suffix));
        let model_type = match name {
            "llama" if number("expert_count").is_some_and(|experts| experts > 0) => Some("mixtral"),
            // Sigmoid gates, which came with version 3.
            "deepseek2" if number("expert_gating_func") == Some(2) || any(".exp_probs_b.bias") => Some("deepseek_v3"),
            "chatglm" if any(".attn_q.weight") => Some("glm"),
            _ => None,
        };
        let found = Self::all().find(|a| a.name == name && model_type.is_none_or(|wanted| a.model_type == wanted));
        found.ok_or_else(|| {
            let mut known: Vec<&str> = Self::all().map(|a| a.name).collect();
            known.dedup();
            let reason =
                format!("GGUF architecture `{name}`; read from GGUF are {}; use the Hugging Face folder", known.join(", "));
            FormatError::unsupported(path, reason)
        })
    }

    fn parts(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        self.block.iter().flat_map(|part| part.iter())
    }

    /// The Hugging Face names of what a GGUF tensor holds: several for a stack; none for a part of a joined tensor that is not the first,
    /// and for what is no weight of this architecture.
    pub(crate) fn hf_names(&self, tensor: &TensorInfo) -> Vec<String> {
        let Some((stem, suffix)) = named(&tensor.name) else { return Vec::new() };
        if let Some((_, part)) = self.top.iter().find(|(gguf, _)| *gguf == stem) {
            return vec![format!("{part}.{suffix}")];
        }
        let Some((layer, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else { return Vec::new() };
        if layer.parse::<u32>().is_err() {
            return Vec::new();
        }
        let start = format!("{}{layer}", self.layers);
        for (gguf, hf) in self.parts() {
            if *gguf == format!("{part}.{suffix}") {
                return vec![format!("{start}.{hf}")];
            }
            if let (Some(number), true) = (numbered(gguf, part), gguf.contains("{}")) {
                return vec![format!("{start}.{}.{suffix}", hf.replace("{}", number))];
            }
            if gguf.split('+').next() != Some(part) {
                continue;
            }
            if !hf.contains("{}") {
                return vec![format!("{start}.{hf}.{suffix}")];
            }
            let stacked = tensor.shape().first().copied().unwrap_or(0);
            return (0..stacked).map(|i| format!("{start}.{}.{suffix}", hf.replace("{}", &i.to_string()))).collect();
        }
        Vec::new()
    }

    /// The GGUF name of a Hugging Face tensor that has one of its own.
    pub(crate) fn gguf_name(&self, name: &str) -> Option<String> {
        let mut found = self.gguf_names(name);
        let (first, index) = found.next()?;
        (index.is_none() && !first.contains('+')).then_some(first)
    }

    /// Every GGUF name that a Hugging Face tensor may have, with the matrix's number where that is a stack. Names with `+` stand for
    /// several.
    fn gguf_names(&self, name: &str) -> impl Iterator<Item = (String, Option<usize>)> {
        let mut found = Vec::new();
        let inner = name.strip_prefix(self.layers).and_then(|rest| rest.split_once('.'));
        let inner = inner.filter(|(layer, _)| layer.parse::<u32>().is_ok());
        if let Some((stem, suffix)) = named(name)
            && let Some((part, _)) = self.top.iter().find(|(_, hf)| *hf == stem)
        {
            found.push((format!("{part}.{suffix}"), None));
        }
        if let Some((layer, rest)) = inner {
            let blk = format!("blk.{layer}");
            for (gguf, hf) in self.parts() {
                if *hf == rest {
                    found.push((format!("{blk}.{gguf}"), None));
                }
                let Some((part, suffix)) = named(rest) else { continue };
                if *hf == part {
                    let each = gguf.split('+').map(|gguf| format!("{blk}.{gguf}.{suffix}"));
                    found.push((each.collect::<Vec<_>>().join("+"), None));
                } else if let (Some(number), true) = (numbered(hf, part), hf.contains("{}")) {
                    let stack = (!gguf.contains("{}")).then(|| number.parse().ok()).flatten();
                    found.push((format!("{blk}.{}.{suffix}", gguf.replace("{}", number)), stack));
                }
            }
        }
        found.into_iter()
    }

    /// Whether a Hugging Face name is of a block.
    pub(crate) fn in_block(&self, name: &str) -> bool {
        name.starts_with(self.layers)
    }

    /// Where a Hugging Face tensor is in a file.
    pub(crate) fn find<'a>(&self, gguf: &'a Gguf, name: &str) -> Option<Stored<'a>> {
        // A model inside another one, as `bert.` in one with a head.
        let name = name.strip_prefix("bert.").filter(|_| self.model_type == "bert").unwrap_or(name);
        self.gguf_names(name).find_map(|(stored, index)| {
            let tensors: Vec<&TensorInfo> = stored.split('+').map(|name| gguf.tensor(name)).collect::<Option<_>>()?;
            match (tensors.as_slice(), index) {
                (&[stack], Some(index)) => (index < *stack.shape().first()?).then_some(Stored::Slice { stack, index }),
                (&[keys, values], None) if keys.name.contains("attn_k_b") => Some(Stored::Latent { keys, values }),
                (&[one], None) => Some(Stored::Whole(one)),
                _ => Some(Stored::Joined(tensors)),
            }
        })
    }
}

/// A tensor's name without its last part, and that part.
fn named(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))
}

/// What stands for `{}` in a name that fits the pattern; nothing where the pattern has none.
fn numbered<'a>(pattern: &str, name: &'a str) -> Option<&'a str> {
    let (before, after) = pattern.split_once("{}")?;
    let number = name.strip_prefix(before)?.strip_suffix(after)?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_both_ways() {
        for architecture in Architecture::all() {
            let block = architecture.parts().filter(|(gguf, hf)| !gguf.contains(['+', '.']) && !hf.contains("{}"));
            let layers = block.map(|(_, hf)| format!("{}17.{hf}.weight", architecture.layers));
            for part in layers.chain(architecture.top.iter().map(|(_, hf)| format!("{hf}.weight"))) {
                let Some(stored) = architecture.gguf_name(&part) else { continue };
                let tensor = TensorInfo::named(&stored);
                assert_eq!(architecture.hf_names(&tensor), [part], "{}", architecture.model_type);
            }
        }
        for bad in ["blk.x.attn_q.weight", "blk.1.attn_z.weight", "output", "blk..attn_q.weight", ""] {
            assert_eq!(LLAMA.hf_names(&TensorInfo::named(bad)), [""; 0], "{bad}");
        }
    }

    #[test]
    fn stacks_joined_rows_and_forms_of_different_years_are_found() {
        let of = |model_type: &str| Architecture::all().find(|a| a.model_type == model_type).unwrap();
        let names = |model_type: &str, hf: &str| of(model_type).gguf_names(hf).collect::<Vec<_>>();
        let whole = |name: &str| (name.to_string(), None);
        assert_eq!(
            names("mixtral", "model.layers.3.block_sparse_moe.experts.5.w2.weight"),
            [("blk.3.ffn_down_exps.weight".to_string(), Some(5)), whole("blk.3.ffn_down.5.weight")]
        );
        assert_eq!(
            names("deepseek_v3", "model.layers.3.self_attn.kv_b_proj.weight"),
            [whole("blk.3.attn_k_b.weight+blk.3.attn_v_b.weight"), whole("blk.3.attn_kv_b.weight")]
        );
        assert_eq!(names("deepseek_v3", "model.layers.3.mlp.gate.e_score_correction_bias"), [whole("blk.3.exp_probs_b.bias")]);
        assert_eq!(
            names("baichuan", "model.layers.0.self_attn.W_pack.weight"),
            [whole("blk.0.attn_q.weight+blk.0.attn_k.weight+blk.0.attn_v.weight")]
        );
        assert_eq!(names("gpt2", "transformer.h.0.attn.c_attn.bias"), [whole("blk.0.attn_qkv.bias")]);
        assert_eq!(names("llama", "model.layers.x.self_attn.q_proj.weight"), []);
        assert_eq!(of("llama").gguf_name("model.norm.weight").as_deref(), Some("output_norm.weight"));
    }
}
