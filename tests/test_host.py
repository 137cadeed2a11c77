from sgan import host


def test_the_processor_has_a_name():
    assert host.processor().strip()
