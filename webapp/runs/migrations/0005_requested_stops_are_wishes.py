from django.db import migrations

# A request that its run has outlived is told by the run's reason and its events.
FORWARD = """
    UPDATE arborist_run SET
        wish = 'stop', wish_seen_at = CASE WHEN status = 'stopping' THEN heartbeat_at END
    WHERE wish_at IS NOT NULL AND status IN ('starting', 'running', 'stopping');
    UPDATE arborist_run SET wish_at = NULL, wish_by_id = NULL
    WHERE wish_at IS NOT NULL AND wish = '';
"""
BACKWARD = """
    UPDATE arborist_run SET
        wish = '', wish_seen_at = NULL, settled_epoch = 0,
        status = CASE WHEN status = 'paused' THEN 'stopped' ELSE status END,
        ended_at = CASE WHEN status = 'paused' THEN now() ELSE ended_at END
    WHERE wish <> '' OR status = 'paused';
"""


class Migration(migrations.Migration):
    dependencies = [("runs", "0004_runs_carry_one_wish_and_may_be_paused")]

    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
