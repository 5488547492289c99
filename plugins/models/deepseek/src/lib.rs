//! DeepSeek-V2 (DeepSeek-AI 2024, section 2.1) and V3 (DeepSeek-AI 2024b, section 2.1): multi-head latent attention, which makes keys and
//! values of a narrow latent vector, and many small experts beside shared ones. Names are those of `DeepseekV2ForCausalLM` and
//! `DeepseekV3ForCausalLM`; V3's layers for predicting further tokens are not part of the model that answers.

use blocks::{
    Activation, Architecture, Experts, GatedFeedForward, Groups, Heads, Linear, Net, Norm, Rope, RopeParameters, RopeSource,
    Router, Scores, Stack,
};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// Softmax scores; a group is as good as its best expert.
        V2 = "deepseek_v2",
        /// Sigmoid scores that are corrected while choosing; a group is as good as its best two experts.
        V3 = "deepseek_v3",
    }
}

config! {
    /// DeepSeek V2 and V3 decoders.
    pub struct DeepSeek {
        /// The family.
        model_type: Kind = Kind::V3,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 129280,
        /// Width of the residual stream.
        hidden_size: u64 = 7168,
        /// Width of the feed-forward layer in blocks without experts.
        intermediate_size: u64 = 18432,
        /// Number of blocks.
        num_hidden_layers: u32 = 61,
        /// Heads.
        num_attention_heads: u64 = 128,
        /// Width of the queries' latent vector, if they have one.
        q_lora_rank: Option<u64> = None,
        /// Width of the latent vector of keys and values.
        kv_lora_rank: u64 = 512,
        /// Elements of a query or key that turn with the position; keys share them.
        qk_rope_head_dim: u64 = 64,
        /// Elements that do not.
        qk_nope_head_dim: u64 = 128,
        /// Size of a value head.
        v_head_dim: u64 = 128,
        /// Biases in the first projections and the last one of attention.
        attention_bias: bool = false,
        /// Neighbours turn together instead of halves (V3).
        rope_interleave: bool = true,
        /// Blocks before the first with experts.
        first_k_dense_replace: u32 = 0,
        /// Number of routed experts.
        n_routed_experts: u64 = 256,
        /// Number of experts that every token goes through.
        n_shared_experts: u64 = 1,
        /// Experts for each token.
        num_experts_per_tok: u32 = 8,
        /// Width of an expert.
        moe_intermediate_size: u64 = 2048,
        /// Groups of experts.
        n_group: Option<u64> = None,
        /// Groups that a token may choose from.
        topk_group: Option<u64> = None,
        /// How V2 chooses: "greedy" or "group_limited_greedy".
        topk_method: String = "greedy".into(),
        /// Weights of the chosen experts sum to 1 (V3).
        norm_topk_prob: bool = true,
        /// Factor of their weights.
        routed_scaling_factor: f64 = 1.0,
        /// Activation of the feed-forward layers.
        hidden_act: Activation = Activation::Silu,
        /// Added to the mean square in norms.
        rms_norm_eps: f64 = 1e-6,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 4096,
        /// The output projection is the token table.
        tie_word_embeddings: bool = false,
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

/// Of the norms of latent vectors, whatever the configuration says for others.
const LATENT_EPS: f64 = 1e-6;

impl DeepSeek {
    fn rope(&self) -> Result<Rope> {
        let rope = Rope::new(RopeSource {
            parameters: self.rope_parameters.as_ref(),
            scaling: self.rope_scaling.as_ref(),
            theta: self.rope_theta,
            head_dim: self.qk_rope_head_dim,
            max_positions: self.max_position_embeddings,
            ..RopeSource::default()
        })?;
        Ok(if self.model_type == Kind::V2 || self.rope_interleave { rope.interleaved() } else { rope })
    }

    /// Equations 9 to 19 of the V2 paper. Latent vectors are expanded before attention.
    fn attention(&self, net: &Net, layer: u32, rope: &Rope, x: &Value) -> Value {
        let (d, n, heads) = (self.hidden_size, net.tokens(), self.num_attention_heads);
        let (still, turning, d_v) = (self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim);
        let (size, latent) = (still + turning, self.kv_lora_rank);
        scope("self_attn", || {
            let q = match self.q_lora_rank {
                Some(rank) => {
                    let c = net.linear("q_a_proj", x, Linear::new(d, rank).bias(self.attention_bias));
                    let c = net.norm("q_a_layernorm", &c, Norm::rms(rank, LATENT_EPS));
                    net.linear("q_b_proj", &c, Linear::new(rank, heads * size))
                }
                None => net.linear("q_proj", x, Linear::new(d, heads * size)),
            };
            let q = q.reshape((n, heads, size));
            let q = concat(&[&q.slice(-1, 0, still), &rope.turn(net, &q.slice(-1, still, turning))], -1);

            let both = net.linear("kv_a_proj_with_mqa", x, Linear::new(d, latent + turning).bias(self.attention_bias));
            let shared = rope.turn(net, &both.slice(-1, latent, turning).reshape((n, 1, turning)));
            let c = net.norm("kv_a_layernorm", &both.slice(-1, 0, latent), Norm::rms(latent, LATENT_EPS));
            let kv = net.linear("kv_b_proj", &c, Linear::new(latent, heads * (still + d_v))).reshape((n, heads, still + d_v));
            let k = concat(&[&kv.slice(-1, 0, still), &shared.expand((n, heads, turning))], -1);

            let scale = rope.score_scale / (size as f64).sqrt();
            let mixing = Heads { value_size: d_v, ..Heads::new(layer, [heads, heads, size]).scores(scale, None) };
            let y = mixing.mix(net, &q, &k, &kv.slice(-1, still, d_v));
            net.linear("o_proj", &y, Linear::new(heads * d_v, d).bias(self.attention_bias))
        })
    }

    fn router(&self) -> Router {
        let plain = Router { factor: self.routed_scaling_factor, ..Router::new(self.n_routed_experts, self.num_experts_per_tok) };
        let groups = |best| {
            let (count, chosen) = (self.n_group?, self.topk_group?);
            (count > 1 && chosen < count).then_some(Groups { count, chosen, best })
        };
        match self.model_type {
            Kind::V2 => Router { groups: if self.topk_method == "greedy" { None } else { groups(1) }, ..plain },
            Kind::V3 => {
                let (scores, normalized) = (Scores::Sigmoid, self.norm_topk_prob);
                Router { scores, corrected: true, groups: groups(2), normalized, ..plain }
            }
        }
    }

    /// Routed experts and the shared ones, which are one wider layer.
    fn mixture(&self, net: &Net, x: &Value) -> Value {
        let (d, d_ff) = (self.hidden_size, self.moe_intermediate_size);
        let (count, chosen) = (self.n_routed_experts, self.num_experts_per_tok);
        let names = ["gate_proj", "up_proj", "down_proj"];
        let experts = Experts { count, chosen, d, d_ff, activation: self.hidden_act, names };
        let shared = GatedFeedForward::new(d, d_ff * self.n_shared_experts, self.hidden_act);
        let routed = experts.apply(net, x, &self.router().choose(&net.at("gate"), x, d));
        routed + shared.apply(&net.at("shared_experts"), x)
    }

    fn check(&self) -> Result<()> {
        if let Some(count) = self.n_group.filter(|&count| !self.n_routed_experts.is_multiple_of(count)) {
            return Err(Error::config(format!("{} experts cannot be {count} groups", self.n_routed_experts)));
        }
        if !["greedy", "group_limited_greedy", "noaux_tc"].contains(&self.topk_method.as_str()) {
            return Err(Error::config(format!("topk_method `{}` is not known", self.topk_method))
                .hint("V2 has `greedy` and `group_limited_greedy`, V3 `noaux_tc`"));
        }
        if self.v_head_dim > self.qk_nope_head_dim + self.qk_rope_head_dim {
            return Err(Error::config("`v_head_dim` is over the size of a query head").hint("released models have smaller ones"));
        }
        Heads::check([self.num_attention_heads, self.num_attention_heads, self.qk_nope_head_dim + self.qk_rope_head_dim])
    }
}

impl Architecture for DeepSeek {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        self.check()?;
        let rope = self.rope()?;
        let d = self.hidden_size;
        let norm = Norm::rms(d, self.rms_norm_eps);
        let mlp = GatedFeedForward::new(d, self.intermediate_size, self.hidden_act);
        let stack = Stack::new(self.vocab_size, d, self.num_hidden_layers, norm).tied(self.tie_word_embeddings);
        stack.run(net, |net, layer, x| {
            let x = x + self.attention(&net.at("self_attn"), layer, &rope, &net.norm("input_layernorm", x, norm));
            let fed = net.norm("post_attention_layernorm", &x, norm);
            let net = net.at("mlp");
            x + if layer < self.first_k_dense_replace { mlp.apply(&net, &fed) } else { self.mixture(&net, &fed) }
        });
        Ok(())
    }
}

blocks::model! { "deepseek": DeepSeek }
