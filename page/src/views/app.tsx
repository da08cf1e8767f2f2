import { t } from '../i18n'
import { generate } from '../state/actions'
import { live } from '../state/queue'
import { locked, lost } from '../state/server'
import { opened, said, show, sweepId, view, type View } from '../state/ui'
import { Compose } from './compose'
import { Confirm } from './confirm'
import { Drop } from './drop'
import { Gallery } from './gallery'
import { Help, helping } from './keys'
import { lazy } from './lazy'
import { masking } from './masking'
import { Notice } from './notice'
import { Queue } from './queue'
import { Recipes } from './recipes'
import { Settings } from './settings'
import { SignIn } from './signin'
import { Stage } from './stage'
import { Viewer } from './viewer'

const Sweeps = lazy(() => import('./sweeps').then((found) => found.Sweeps))
const VIEWS: View[] = ['draw', 'gallery', 'sweeps', 'settings']

export function App() {
  if (locked.value) return <SignIn />
  const counted = live.value.length
  return (
    <>
      <a class="skip" href="#draw" onClick={() => requestAnimationFrame(() => document.getElementById('field-prompt')?.focus())}>
        {t('skip')}
      </a>
      <header>
        <h1>Darkroom</h1>
        <nav aria-label="Darkroom">
          {VIEWS.map((one) => (
            <a key={one} href={`#${one}`} aria-current={view.value === one ? 'page' : undefined}>
              {t(one)}
              {one === 'draw' && counted > 0 ? <span class="badge">{counted}</span> : null}
            </a>
          ))}
          <button type="button" class="plain" onClick={() => (helping.value = true)} aria-label={t('keys')}>
            ?
          </button>
        </nav>
      </header>
      {lost.value ? (
        <p class="banner" role="alert">
          {t('lost')}
        </p>
      ) : null}
      <main class={view.value} tabIndex={-1}>
        {view.value === 'draw' ? (
          <>
            <Compose onGenerate={() => void generate()} />
            <div class="results">
              <Stage />
              <Queue />
              <section aria-label={t('gallery')} class="recent">
                <Gallery most={24} />
                <p>
                  <button type="button" onClick={() => show('gallery')}>
                    {t('gallery')}
                  </button>
                </p>
              </section>
            </div>
          </>
        ) : null}
        {view.value === 'gallery' ? <Gallery /> : null}
        {view.value === 'sweeps' ? <Sweeps id={sweepId.value} /> : null}
        {view.value === 'settings' ? <Settings /> : null}
      </main>
      {opened.value ? <Viewer id={opened.value} /> : null}
      <Drop />
      <Confirm />
      <Recipes />
      {helping.value ? <Help /> : null}
      <div class="hidden" aria-live="polite">
        {said.value}
      </div>
      {opened.value || masking.value ? null : <Notice />}
    </>
  )
}
