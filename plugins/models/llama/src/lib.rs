//! Llama, as in Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models", section 2.2, with the grouped-query
//! attention of Llama 2 (Touvron et al. 2023b, section 2.2) and the RoPE scalings of later releases. Names are those of
//! `LlamaForCausalLM`.

mod rope;

use rope::RopeParameters;
use swift_sdk::prelude::*;

config! {
    /// Llama decoders (config.json with model_type "llama").
    pub struct Llama {
        /// Must be "llama".
        model_type: String = "llama".into(),
        /// Tokens in the vocabulary.
        vocab_size: u64 = 32000,
        /// Width of the residual stream.
        hidden_size: u64 = 4096,
        /// Width of the feed-forward layer.
        intermediate_size: u64 = 11008,
        /// Number of blocks.
        num_hidden_layers: u32 = 32,
        /// Query heads.
        num_attention_heads: u64 = 32,
        /// Key and value heads, if fewer.
        num_key_value_heads: Option<u64> = None,
        /// Size of a head, if not hidden_size / num_attention_heads.
        head_dim: Option<u64> = None,
        /// Must be "silu".
        hidden_act: String = "silu".into(),
        /// Added to the mean square in norms.
        rms_norm_eps: f64 = 1e-6,
        /// Context length of the pre-training.
        max_position_embeddings: u64 = 2048,
        /// The output projection is the token table.
        tie_word_embeddings: bool = false,
        /// Biases in q, k, v and o.
        attention_bias: bool = false,
        /// Biases in gate, up and down.
        mlp_bias: bool = false,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Base of the rotary frequencies, where rope_parameters does not say.
        rope_theta: Option<f64> = None,
        /// Rotary scaling in older configurations.
        rope_scaling: Option<RopeParameters> = None,
        /// Rotary base and scaling in newer configurations.
        rope_parameters: Option<RopeParameters> = None,
        ..
    }
}

impl Llama {
    fn check(&self) -> Result<()> {
        let (heads, kv_heads) = (self.num_attention_heads, self.kv_heads());
        if self.model_type != "llama" {
            return Err(Error::config(format!("model_type is `{}`", self.model_type)).hint("this plugin is for `llama`"));
        }
        if self.hidden_act != "silu" {
            return Err(Error::config(format!("hidden_act is `{}`", self.hidden_act)).hint("Llama uses `silu`"));
        }
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 {
            return Err(Error::config(format!("{heads} query heads cannot share {kv_heads} key and value heads")));
        }
        Ok(())
    }

    fn kv_heads(&self) -> u64 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> u64 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    fn norm(&self, s: &Session, path: &str, x: &Value) -> Value {
        s.rms_norm(path, x, self.rms_norm_eps)
    }

    fn block(&self, s: &Session, layer: u32, rope: &RopeSpec, x: &Value) -> Value {
        let at = format!("model.layers.{layer}");
        let attended = self.attention(s, layer, rope, &self.norm(s, &format!("{at}.input_layernorm"), x));
        let x = x + attended;
        let fed = self.mlp(s, layer, &self.norm(s, &format!("{at}.post_attention_layernorm"), &x));
        x + fed
    }

    fn attention(&self, s: &Session, layer: u32, rope: &RopeSpec, x: &Value) -> Value {
        let (heads, kv_heads, d) = (self.num_attention_heads, self.kv_heads(), self.head_dim());
        let at = |name: &str| format!("model.layers.{layer}.self_attn.{name}");
        let project = |name: &str, heads: u64| s.linear(&at(name), x).reshape((s.tokens(), heads, d));
        scope("self_attn", || {
            let q = s.rope(&project("q_proj", heads), rope);
            let k = s.rope(&project("k_proj", kv_heads), rope);
            let v = project("v_proj", kv_heads);
            let spec = Attention { scale: (d as f32).sqrt().recip(), softcap: None, window: None };
            let y = s.attention(layer, &q, &k, &v, spec);
            s.linear(&at("o_proj"), &y.reshape((s.tokens(), heads * d)))
        })
    }

    fn mlp(&self, s: &Session, layer: u32, x: &Value) -> Value {
        let at = |name: &str| format!("model.layers.{layer}.mlp.{name}");
        scope("mlp", || {
            let gated = s.linear(&at("gate_proj"), x).silu() * s.linear(&at("up_proj"), x);
            s.linear(&at("down_proj"), &gated)
        })
    }
}

impl Model for Llama {
    fn plan(&self) -> Result<ModelPlan> {
        self.check()?;
        let (d, d_ff, std) = (self.hidden_size, self.intermediate_size, self.initializer_range);
        let (q, kv) = (self.num_attention_heads * self.head_dim(), self.kv_heads() * self.head_dim());
        let mut plan = ModelPlan::new();
        plan.embedding("model.embed_tokens", self.vocab_size, d, std);
        for layer in 0..self.num_hidden_layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            plan.norm(&at("input_layernorm"), d);
            plan.linear(&at("self_attn.q_proj"), q, d, self.attention_bias, std);
            plan.linear(&at("self_attn.k_proj"), kv, d, self.attention_bias, std);
            plan.linear(&at("self_attn.v_proj"), kv, d, self.attention_bias, std);
            plan.linear(&at("self_attn.o_proj"), d, q, self.attention_bias, std);
            plan.norm(&at("post_attention_layernorm"), d);
            plan.linear(&at("mlp.gate_proj"), d_ff, d, self.mlp_bias, std);
            plan.linear(&at("mlp.up_proj"), d_ff, d, self.mlp_bias, std);
            plan.linear(&at("mlp.down_proj"), d, d_ff, self.mlp_bias, std);
            plan.cache(layer, self.kv_heads() as u32, self.head_dim() as u32);
        }
        plan.norm("model.norm", d);
        if !self.tie_word_embeddings {
            plan.head("lm_head", self.vocab_size, d, std);
        }
        Ok(plan)
    }

    fn trace(&self, s: &Session) -> Result<()> {
        let rope = rope::spec(self)?;
        let mut x = s.embed("model.embed_tokens", &s.input("ids"));
        for layer in 0..self.num_hidden_layers {
            x = scope(format!("layers.{layer}"), || self.block(s, layer, &rope, &x));
        }
        let hidden = self.norm(s, "model.norm", &x);
        s.head(if self.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" }, &hidden);
        Ok(())
    }
}

plugin! { model "llama": Llama }
