//! Parameter counts, message sizes and operations of the production sizes, and of models as they are built.

mod fixture;

use trestle_model::config::{BoundaryForm, Dtype, ModelConfig};
use trestle_model::optimizer::config::OptimizerKind;

fn production(width: usize, heads: usize, layers: usize, ffn_width: usize) -> ModelConfig {
    ModelConfig {
        vocabulary: 128_256,
        width,
        layers,
        heads,
        kv_heads: 8,
        ffn_width,
        sequence_len: 800,
        rope_theta: 500_000.0,
        norm_epsilon: 1e-5,
        boundary: BoundaryForm::Fused,
        boundary_width: width / 64,
        encoder_width: width,
        stage_layers: vec![layers],
        wire: Dtype::Bf16,
    }
}

#[test]
fn dense_counts_are_those_of_the_table() {
    assert_eq!(production(3072, 24, 28, 8192).dense_parameters(), 3_606_752_256);
    assert_eq!(production(4096, 32, 32, 14336).dense_parameters(), 8_030_261_248);
    assert_eq!(production(9216, 72, 90, 32256).dense_parameters(), 99_615_863_808);
    let billions = |config: ModelConfig| config.dense_parameters() as f64 / 1e9;
    assert_eq!(format!("{:.2}", billions(production(5120, 40, 50, 13824))), "15.08");
    assert_eq!(format!("{:.1}", billions(production(5120, 40, 64, 16384))), "21.4");
    assert_eq!(format!("{:.1}", billions(production(7168, 56, 66, 25088))), "45.2");
}

/// The table's count of the 1B model holds its boundaries: twelve fused ones, of two `d x k` matrices each.
#[test]
fn the_1b_count_is_that_of_thirteen_fused_stages() {
    let mut config = production(2048, 32, 16, 8192);
    assert_eq!(config.dense_parameters(), 1_498_482_688);
    config.stage_layers = [vec![2; 3], vec![1; 10]].concat();
    config.validate().expect("the configuration is valid");
    assert_eq!(config.boundary_parameters(), 12 * 2 * 2048 * 32);
    assert_eq!(config.parameters(), 1_500_055_552);
}

#[test]
fn sixteen_stages_of_the_largest_fit_the_published_figures() {
    let mut config = production(9216, 72, 90, 32256);
    config.stage_layers = [vec![4], vec![6; 12], vec![5; 2], vec![4]].concat();
    config.validate().expect("the configuration is valid");
    // 10 x 800 tokens of 144 bf16 numbers: 2.197 MiB.
    assert_eq!(config.boundary_bytes(10), 2_304_000);
    let stages: u64 = (0..16).map(|stage| config.stage_parameters(stage)).sum();
    assert_eq!(stages, config.parameters());
}

#[test]
fn counts_are_those_of_the_built_model() {
    for form in [BoundaryForm::None, BoundaryForm::Resbm, BoundaryForm::Fused] {
        for stage_layers in [&[3][..], &[1, 1, 1], &[1, 2, 1]] {
            let config = fixture::config(fixture::model(form, stage_layers), OptimizerKind::AdamW);
            let mut all = 0;
            for stage in 0..stage_layers.len() {
                let weights =
                    fixture::engine(&config, stage..stage + 1).weights().expect("weights can be read");
                let built: u64 = weights.values().map(|numbers| numbers.len() as u64).sum();
                assert_eq!(
                    built,
                    config.model.stage_parameters(stage),
                    "{form:?} {stage_layers:?} stage {stage}"
                );
                all += built;
            }
            assert_eq!(all, config.model.parameters());
            let dense = all.strict_add_signed(-config.model.boundary_parameters());
            assert_eq!(dense, config.model.dense_parameters());
        }
    }
}

#[test]
fn operations_are_six_a_weight_and_causal_attention() {
    let config = fixture::model(BoundaryForm::None, &[2, 2]);
    let multiplied = config.parameters() - (config.vocabulary * config.width) as u64;
    let want = 6.0 * multiplied as f64 + 6.0 * 4.0 * 16.0 * 32.0;
    assert!((config.train_flops_per_token() - want).abs() < 1e-6 * want);
}
