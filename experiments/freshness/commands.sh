# Time: 6 hours
python -m src.train experiment=hops_pretrain seed=1 data.seed=1 output_dir=outputs/reproduce/freshness/1/base if_exists=resume
python -m src.train experiment=hops_sft model.path=outputs/reproduce/freshness/1/base/model seed=1 data.seed=1 \
    data.sizes.other_pages=19920 output_dir=outputs/reproduce/freshness/1/sft if_exists=resume
python -m src.train experiment=freshness refresh=full model.path=outputs/reproduce/freshness/1/sft/model seed=1 data.seed=1 \
    output_dir=outputs/reproduce/freshness/1/rl-full if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=1 data.seed=1 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/1/sft/model \
    model.path=outputs/reproduce/freshness/1/rl-full/model output_dir=outputs/reproduce/freshness/1/eval/rl-full
python -m src.train experiment=freshness refresh=candidates model.path=outputs/reproduce/freshness/1/sft/model seed=1 data.seed=1 \
    output_dir=outputs/reproduce/freshness/1/rl-candidates if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=1 data.seed=1 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/1/sft/model \
    model.path=outputs/reproduce/freshness/1/rl-candidates/model output_dir=outputs/reproduce/freshness/1/eval/rl-candidates
python -m src.train experiment=freshness refresh=graph model.path=outputs/reproduce/freshness/1/sft/model seed=1 data.seed=1 \
    output_dir=outputs/reproduce/freshness/1/rl-graph if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=1 data.seed=1 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/1/sft/model \
    model.path=outputs/reproduce/freshness/1/rl-graph/model output_dir=outputs/reproduce/freshness/1/eval/rl-graph
python -m src.train experiment=freshness refresh=frozen model.path=outputs/reproduce/freshness/1/sft/model seed=1 data.seed=1 \
    output_dir=outputs/reproduce/freshness/1/rl-frozen if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=1 data.seed=1 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/1/sft/model \
    model.path=outputs/reproduce/freshness/1/rl-frozen/model output_dir=outputs/reproduce/freshness/1/eval/rl-frozen
python -m src.train experiment=hops_pretrain seed=2 data.seed=2 output_dir=outputs/reproduce/freshness/2/base if_exists=resume
python -m src.train experiment=hops_sft model.path=outputs/reproduce/freshness/2/base/model seed=2 data.seed=2 \
    data.sizes.other_pages=19920 output_dir=outputs/reproduce/freshness/2/sft if_exists=resume
python -m src.train experiment=freshness refresh=full model.path=outputs/reproduce/freshness/2/sft/model seed=2 data.seed=2 \
    output_dir=outputs/reproduce/freshness/2/rl-full if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=2 data.seed=2 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/2/sft/model \
    model.path=outputs/reproduce/freshness/2/rl-full/model output_dir=outputs/reproduce/freshness/2/eval/rl-full
python -m src.train experiment=freshness refresh=candidates model.path=outputs/reproduce/freshness/2/sft/model seed=2 data.seed=2 \
    output_dir=outputs/reproduce/freshness/2/rl-candidates if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=2 data.seed=2 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/2/sft/model \
    model.path=outputs/reproduce/freshness/2/rl-candidates/model output_dir=outputs/reproduce/freshness/2/eval/rl-candidates
python -m src.train experiment=freshness refresh=frozen model.path=outputs/reproduce/freshness/2/sft/model seed=2 data.seed=2 \
    output_dir=outputs/reproduce/freshness/2/rl-frozen if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=2 data.seed=2 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/2/sft/model \
    model.path=outputs/reproduce/freshness/2/rl-frozen/model output_dir=outputs/reproduce/freshness/2/eval/rl-frozen
python -m src.train experiment=hops_pretrain seed=3 data.seed=3 output_dir=outputs/reproduce/freshness/3/base if_exists=resume
python -m src.train experiment=hops_sft model.path=outputs/reproduce/freshness/3/base/model seed=3 data.seed=3 \
    data.sizes.other_pages=19920 output_dir=outputs/reproduce/freshness/3/sft if_exists=resume
python -m src.train experiment=freshness refresh=full model.path=outputs/reproduce/freshness/3/sft/model seed=3 data.seed=3 \
    output_dir=outputs/reproduce/freshness/3/rl-full if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=3 data.seed=3 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/3/sft/model \
    model.path=outputs/reproduce/freshness/3/rl-full/model output_dir=outputs/reproduce/freshness/3/eval/rl-full
python -m src.train experiment=freshness refresh=candidates model.path=outputs/reproduce/freshness/3/sft/model seed=3 data.seed=3 \
    output_dir=outputs/reproduce/freshness/3/rl-candidates if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=3 data.seed=3 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/3/sft/model \
    model.path=outputs/reproduce/freshness/3/rl-candidates/model output_dir=outputs/reproduce/freshness/3/eval/rl-candidates
python -m src.train experiment=freshness refresh=frozen model.path=outputs/reproduce/freshness/3/sft/model seed=3 data.seed=3 \
    output_dir=outputs/reproduce/freshness/3/rl-frozen if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=3 data.seed=3 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/3/sft/model \
    model.path=outputs/reproduce/freshness/3/rl-frozen/model output_dir=outputs/reproduce/freshness/3/eval/rl-frozen
python -m experiments.freshness.outcome outputs/reproduce/freshness --output outputs/reproduce/freshness/outcome.json
python -m src.train experiment=freshness refresh=certified reward.ranking.k=100 model.path=outputs/reproduce/freshness/2/sft/model \
    seed=2 data.seed=2 output_dir=outputs/reproduce/freshness-cut/2/rl-certified if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=2 data.seed=2 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/2/sft/model \
    model.path=outputs/reproduce/freshness-cut/2/rl-certified/model output_dir=outputs/reproduce/freshness-cut/2/eval/rl-certified
python -m src.train experiment=freshness refresh=candidates reward.ranking.k=100 model.path=outputs/reproduce/freshness/2/sft/model \
    seed=2 data.seed=2 output_dir=outputs/reproduce/freshness-cut/2/rl-candidates if_exists=resume
python -m src.evaluate data=hops data.sizes.other_pages=19920 seed=2 data.seed=2 benchmarks=[hops] \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=outputs/reproduce/freshness/2/sft/model \
    model.path=outputs/reproduce/freshness-cut/2/rl-candidates/model output_dir=outputs/reproduce/freshness-cut/2/eval/rl-candidates
python -m experiments.freshness.outcome outputs/reproduce/freshness-cut --output outputs/reproduce/freshness-cut/outcome.json
