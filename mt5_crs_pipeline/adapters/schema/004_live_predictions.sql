-- What champions said about bars whose outcome was still to come, as they said it.

create table model_prediction (
    timeframe text not null references market_data_timeframe,
    symbol text not null,
    event_timestamp timestamptz not null check (isfinite(event_timestamp)),
    model_version text not null,
    bundle_hash text not null,
    recipe_hash text not null,
    probability double precision not null check (probability between 0 and 1),
    predicted_at timestamptz not null default clock_timestamp(),
    primary key (timeframe, symbol, event_timestamp, bundle_hash)
);

comment on table model_prediction is
    'Predictions by the champion of the moment, each made once; append-only. One counts if made before its outcome';
comment on column model_prediction.event_timestamp is 'Close of the bar that was predicted from';
comment on column model_prediction.bundle_hash is 'SHA-256 of the bundle''s SHA256SUMS';
comment on column model_prediction.recipe_hash is 'The recipe, as in model_trial: it outlives the bundle';
comment on column model_prediction.probability is 'Of UP';
comment on column model_prediction.predicted_at is 'By the clock of this server; filled in';

create trigger model_prediction_refuse_change before update or delete or truncate on model_prediction
    for each statement execute function model_refuse_change();
