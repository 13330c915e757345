"""When erasing and the complex scheme start, what a run is before, and that it goes on as it was."""
import pytest
import timm

from conftest import TRAIN, Run, equal
from timm_focus.training.starts import KNOWN, Start, start

PLAIN, FOCUS = 'test_resnet', 'focus_test_resnet'


def erasing(setting, found=None, latest=None):
    return Start('focus_start', setting, found, latest)


def test_a_setting_is_an_epoch_or_auto():
    assert start('auto') == 'auto' and start('3') == 3
    with pytest.raises(ValueError):
        start('soon')


def test_an_epoch_is_that_epoch():
    begins = erasing(2)
    begins.look(0, dict(loss=0.))
    assert [begins.has_come(epoch) for epoch in range(4)] == [False, False, True, True] and not begins.is_auto


def test_auto_begins_after_the_first_epoch_that_knew_enough():
    begins = erasing('auto')
    for epoch, top1 in enumerate((30., KNOWN - 0.1, KNOWN, 20.)):
        assert not begins.has_come(epoch)
        begins.look(epoch, dict(top1=top1))
        if top1 == KNOWN:
            break
    assert begins.epoch == 3 and begins.has_come(3) and not begins.has_come(2)
    begins.look(3, dict(top1=100.))
    assert begins.epoch == 3, 'found once'
    assert erasing('auto', 3).has_come(3), 'of a run that goes on'


def test_auto_does_not_begin_late(caplog):
    begins = erasing('auto', latest=2)
    with caplog.at_level('INFO', 'train'):
        for epoch in range(4):
            begins.look(epoch, dict(top1=80. if epoch >= 2 else 10.))
    assert begins.epoch is None and not begins.has_come(3)
    assert [record.getMessage() for record in caplog.records] == [
        'No images are erased: in epoch 2 the main classifier knew 80.0 % of the training images, and by then fewer '
        'than half of the epochs are left.']
    assert 'did not know 75 % of the training images while at least half of the epochs were left' in \
        begins.conclusion(4)
    begins = erasing('auto', latest=2)
    begins.look(1, dict(top1=80.))
    assert begins.epoch == 2, 'the last that is early enough'


def test_auto_says_what_became_of_it():
    assert 'images were erased from epoch 3 on' in erasing('auto', 3).conclusion(4)
    for begins in (erasing('auto'), erasing('auto', 4)):  # never, and too late
        assert 'no images were erased' in begins.conclusion(4)


def test_before_auto_starts_a_run_is_plain_and_it_goes_on_as_it_was(train, pytestconfig):
    """With clipping, which reads the gradients of all that it clips; a resume at the start, or at every epoch."""
    more = '--epochs 6 --clip-grad 0.5 --lr 0.03'
    whole = train(f'{more} --focus-start auto --save-epochs 1 2 3', 'whole', model=FOCUS)
    begins = int(whole.rows[-1]['focus_start'])
    assert 0 < begins <= 3 and f'images were erased from epoch {begins} on' in whole.err
    assert f'top1 {float(whole.rows[0]["train_top1"]):.1f}' in whole.err and f'knew {KNOWN} %' in whole.err
    known = whole.column('train_top1')
    assert known[begins - 1] >= KNOWN > max([0., *known[:begins - 1]])
    assert [row['focus_start'] for row in whole.rows] == ['' if e < begins - 1 else str(begins) for e in range(6)]
    assert [float(row['train_erased_loss']) > 0 for row in whole.rows] == [e >= begins for e in range(6)]

    plain = train(f'{more} --stop-epoch {begins}', 'plain', model=PLAIN)
    assert equal(plain.weights(), whole.weights(f'milestone-{begins}'))
    assert not equal(plain.weights(), whole.weights())
    assert whole.column('train_main_loss')[:begins] == plain.column('train_loss')
    for stop in (1, 2, 3) if pytestconfig.getoption('--slow') else (begins,):
        train(f'{more} --focus-start auto --stop-epoch {stop}', f'stopped-{stop}', model=FOCUS)
        again = train(f'{more} --focus-start auto --resume auto', f'stopped-{stop}', model=FOCUS)
        assert equal(again.weights(), whole.weights()) and again.rows == whole.rows


def test_a_model_that_knows_its_images_late_is_trained_plainly(train):
    more = '--sched step --lr 0.03 --focus-start auto'  # at one rate, however many epochs there are
    begins = int(train(f'{more} --epochs 12', 'in-time', model=FOCUS).rows[-1]['focus_start'])
    assert begins > 1
    late = train(f'{more} --epochs {2 * begins - 1}', 'late', model=FOCUS)
    assert f'in epoch {begins - 1} the main classifier knew' in late.err and 'No images are erased: ' in late.err
    assert set(late.column('train_erased_loss')) == {0.} and {row['focus_start'] for row in late.rows} == {''}


def test_the_scheme_changes_as_by_hand_and_goes_on_as_it_was(train, pytestconfig):
    """As a run of the simple scheme that is resumed in the complex one; a worker process learns of it, too."""
    more = '--epochs 4 --lr 0.03'
    whole = train(f'{more} --scheme auto --save-epochs 1 2 3', 'whole', model=PLAIN)
    begins = int(whole.rows[-1]['complex_start'])
    assert 0 < begins < 4 and f'images were cropped by the complex scheme from epoch {begins} on' in whole.err
    known = whole.column('train_top1')
    assert known[begins - 1] >= KNOWN > max([0., *known[:begins - 1]])
    assert [row['complex_start'] for row in whole.rows] == ['' if e < begins - 1 else str(begins) for e in range(4)]

    by_hand = train(f'{more} --stop-epoch {begins}', 'by-hand', model=PLAIN)
    assert equal(by_hand.weights(), whole.weights(f'milestone-{begins}'))
    by_hand = train(f'{more} --scheme complex --resume auto', 'by-hand', model=PLAIN)
    assert equal(by_hand.weights(), whole.weights())
    assert not equal(train(more, 'simple', model=PLAIN).weights(), whole.weights())

    assert equal(train(f'{more} --scheme auto -j 1', 'worker', model=PLAIN).weights(), whole.weights())
    for stop in (1, 2, 3) if pytestconfig.getoption('--slow') else (begins,):
        train(f'{more} --scheme auto --stop-epoch {stop}', f'stopped-{stop}', model=PLAIN)
        again = train(f'{more} --scheme auto --resume auto', f'stopped-{stop}', model=PLAIN)
        assert equal(again.weights(), whole.weights()) and again.rows == whole.rows


@pytest.mark.slow
@pytest.mark.parametrize('more, model', [
    ('--train-img-sizes 32 48', PLAIN), ('--mixup 0.2 --smoothing 0.1', PLAIN), ('--no-prefetcher --cutmix 1', PLAIN),
    ('--kd-model-name local-dir:{teacher}', PLAIN), ('--method acol --img-size 64', PLAIN),
    ('--method masksub', PLAIN), ('--has --reprob 0.5', PLAIN), ('--color-jitter 0.2 --scale 0.5 1', PLAIN),
    ('--focus-recompute --model-ema', FOCUS),
])
def test_the_scheme_changes_with_all_that_goes_with_it(train, monkeypatch, tmp_path, more, model):
    monkeypatch.setattr('timm_focus.training.starts.KNOWN', 0)  # so that it does after the first epoch
    if '{teacher}' in more:
        timm.models.save_for_hf(timm.create_model('test_efficientnet', num_classes=2), tmp_path / 'teacher')
    more = f'{more.format(teacher=tmp_path / "teacher")} --epochs 2 --lr 0.01'
    whole = train(f'{more} --scheme auto', 'whole', model=model)
    assert [row['complex_start'] for row in whole.rows] == ['1', '1']
    # what is given for the crop is of the complex scheme
    first = more.replace('--scale 0.5 1', '')
    train(f'{first} --stop-epoch 1', 'by-hand', model=model)
    by_hand = train(f'{more} --scheme complex --resume auto', 'by-hand', model=model)
    assert equal(by_hand.weights(), whole.weights())


@pytest.mark.slow
@pytest.mark.parametrize('more, model', [
    ('--scheme auto', PLAIN), ('--scheme auto --amp --model-ema', PLAIN), ('--scheme auto --focus-start auto', FOCUS)])
def test_two_processes_start_together_and_go_on_as_they_were(fork, settings, tmp_path, more, model):
    def run(flags, experiment):
        done = fork(TRAIN, *settings(f'--epochs 10 -b 4 --lr 0.03 {more} {flags}', experiment, model=model),
                    processes=2)
        assert done.codes == [0, 0], done.stderr
        return Run(folder=tmp_path / 'out' / experiment, err=done.stderr)

    whole = run('', 'whole')
    begins = int(whole.rows[-1]['complex_start'])
    run(f'--stop-epoch {begins}', 'stopped')
    again = run('--resume auto', 'stopped')
    assert equal(again.weights(), whole.weights()) and again.rows == whole.rows


@pytest.mark.slow
def test_erasing_waits_for_the_complex_scheme_to_be_known(train):
    whole = train('--epochs 12 --lr 0.03 --scheme auto --focus-start auto', 'whole', model=FOCUS)
    known, row = whole.column('train_top1'), whole.rows[-1]
    begins, erases = int(row['complex_start']), int(row['focus_start'])
    assert known[begins - 1] >= KNOWN and known[erases - 1] >= KNOWN and erases > begins
    assert all(top1 < KNOWN for top1 in (*known[:begins - 1], *known[begins:erases - 1]))
    assert [float(row['train_erased_loss']) > 0 for row in whole.rows] == [e >= erases for e in range(12)]


@pytest.mark.parametrize('more, model, words', [
    ('--epochs 1 --scheme auto', PLAIN, '--scheme auto looks at an epoch before it starts'),
    ('--epochs 2 --scheme auto --no-aug', PLAIN, 'changes the crop during the run, which --no-aug does not let it'),
    ('--epochs 2 --scheme auto --train-crop-mode rkrc', PLAIN, 'which --train-crop-mode does not let it'),
    ('--epochs 2 --scheme auto --aug-splits 2', PLAIN, 'which --aug-splits does not let it'),
    ('--epochs 2 --focus-start auto --focus-alpha 0 --focus-beta 0', FOCUS, 'has nothing to start'),
    ('--epochs 1 --focus-start auto', FOCUS, 'looks at an epoch before it starts'),
    ('--epochs 2 --focus-start soon', FOCUS, 'invalid'),
    ('--epochs 2 --focus-start 2', FOCUS, '--focus-start is 2, but --epochs is 2'),
    ('--epochs 2 --focus-start -1', FOCUS, '--focus-start is -1: give 0 or more'),
    ('--epochs 2 --focus-start auto', PLAIN, '--focus-start belongs to focus training'),
])
def test_a_start_that_makes_no_sense(refusal, more, model, words):
    assert words in refusal(more, model=model)
