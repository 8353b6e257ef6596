import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models

# Words: what stands between spaces and punctuation, in lower case. ASCII punctuation goes, so that 45+26=71 is
# three words and no sign sticks to a number; so do the signs of mathematics and of typography. The ranges are
# code points whatever the database's collation.
PLAIN = r"""pg_catalog.regexp_replace(
    $1 COLLATE pg_catalog."C",
    '[\u0001-\u001f!-/:-@\[-`{-~\u00a0-\u00b6\u00b8-\u00bf\u00d7\u00f7\u2000-\u206f\u2190-\u2bff\u3000-\u3020]+', ' ', 'g')"""
# Written out in both, not called: an index is built with a search path on which our own functions are not found.
FUNCTIONS = (
    r"""
CREATE FUNCTION arborist_search_words(text) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT pg_catalog.to_tsvector('pg_catalog.simple'::pg_catalog.regconfig, """
    + PLAIN
    + r""")
$$;

CREATE FUNCTION arborist_search_phrase(text) RETURNS tsquery
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT pg_catalog.phraseto_tsquery('pg_catalog.simple'::pg_catalog.regconfig, """
    + PLAIN
    + r""")
$$;

CREATE FUNCTION arborist_search_marks(
    id bigint, run_id bigint, tree_id bigint, value double precision, advantage double precision, tokens integer,
    depth smallint, verdict smallint, credit_state smallint, problem text
) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT pg_catalog.array_to_tsvector(
    ARRAY[
        '#b' || (id >> 16)::text, '#r' || run_id::text, '#t' || tree_id::text,
        '#v' || verdict::text, '#c' || credit_state::text, '#q' || problem
    ]
    || CASE
        WHEN hashint8(id) & 255 = 0 THEN ARRAY['#x4', '#x8']
        WHEN hashint8(id) & 15 = 0 THEN ARRAY['#x4']
        ELSE ARRAY[]::text[]
    END
    || CASE WHEN value IS NULL THEN ARRAY['#wn'] ELSE ARRAY[]::text[] END
    || CASE
        WHEN advantage IS NULL THEN ARRAY['#an']
        WHEN advantage <= -1 THEN (ARRAY['#al1', '#al2', '#al3', '#al4', '#al6', '#al8'])[
            1:width_bucket(-advantage, ARRAY[1, 2, 3, 4, 6, 8]::double precision[])]
        WHEN advantage >= 1 THEN (ARRAY['#ag1', '#ag2', '#ag3', '#ag4', '#ag6', '#ag8'])[
            1:width_bucket(advantage, ARRAY[1, 2, 3, 4, 6, 8]::double precision[])]
        ELSE ARRAY[]::text[]
    END
    || CASE WHEN tokens < 128 THEN ARRAY[]::text[]
        ELSE (ARRAY['#k128', '#k256', '#k512', '#k1024', '#k2048', '#k4096'])[
            1:width_bucket(tokens, ARRAY[128, 256, 512, 1024, 2048, 4096])]
    END
    || CASE WHEN depth < 8 THEN ARRAY[]::text[]
        ELSE (ARRAY['#d8', '#d16', '#d32', '#d64'])[1:width_bucket(depth::integer, ARRAY[8, 16, 32, 64])]
    END
)
$$;
"""
)
INDEX = """
CREATE INDEX search_words_and_marks ON arborist_search_node USING gin ((
    arborist_search_words(text)
    || arborist_search_marks(
        id, run_id, tree_id, value, advantage, tokens, depth, verdict, credit_state, problem)
))
"""


class Migration(migrations.Migration):
    initial = True

    dependencies = [("runs", "0002_points_are_not_checked_one_by_one")]

    operations = [
        migrations.CreateModel(
            name="IndexedNode",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("project_id", models.BigIntegerField()),
                ("run_id", models.BigIntegerField()),
                ("tree_id", models.BigIntegerField()),
                ("step", models.BigIntegerField()),
                ("value", models.FloatField(null=True)),
                ("advantage", models.FloatField(null=True)),
                ("tokens", models.IntegerField()),
                ("depth", models.SmallIntegerField()),
                ("verdict", models.SmallIntegerField()),
                ("credit_state", models.SmallIntegerField()),
                ("path", models.TextField()),
                ("problem", models.TextField()),
                ("text", models.TextField()),
            ],
            options={"db_table": "arborist_search_node"},
        ),
        migrations.CreateModel(
            name="IndexCursor",
            fields=[
                (
                    "run",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="search_cursor",
                        serialize=False,
                        to="runs.run",
                    ),
                ),
                ("seq", models.BigIntegerField(default=0)),
                ("step", models.BigIntegerField(help_text="Of the newest tree that is indexed.", null=True)),
                ("nodes", models.BigIntegerField(default=0)),
                ("updated_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={"db_table": "arborist_search_cursor"},
        ),
        migrations.CreateModel(
            name="IndexedPart",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "run",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="runs.run",
                    ),
                ),
                ("first_id", models.BigIntegerField()),
                ("last_id", models.BigIntegerField()),
                ("first_step", models.BigIntegerField()),
                ("last_step", models.BigIntegerField()),
            ],
            options={
                "db_table": "arborist_search_part",
                "indexes": [models.Index(fields=["run", "first_id"], name="search_part_of_run")],
            },
        ),
        migrations.RunSQL(
            FUNCTIONS,
            "DROP FUNCTION arborist_search_marks, arborist_search_phrase, arborist_search_words",
        ),
        migrations.RunSQL(INDEX, "DROP INDEX search_words_and_marks"),
    ]
